"""NIQE's parameters in the published layouts, fitted to a few photographs of scikit-image."""

from pathlib import Path

import numpy as np
import torch
from scipy.io import savemat
from skimage import data

from models.metrics.fidelity import luma
from models.metrics.niqe import BLOCK, Floats, block_features, halve

MAT, NPZ = "niqe_modelparameters.mat", "niqe_pris_params.npz"
FITTED_TO = ("chelsea", "coffee", "rocket")


def write_niqe(folder: Path) -> Path:
    """Write both published files, of 60 blocks; returns the folder."""
    rows = np.concatenate([_rows(levels(name)) for name in FITTED_TO])
    mean, covariance = rows.mean(axis=0)[None], np.cov(rows, rowvar=False)
    savemat(folder / MAT, {"mu_prisparam": mean, "cov_prisparam": covariance})
    np.savez(folder / NPZ, mu_pris_param=mean, cov_pris_param=covariance, gaussian_window=np.eye(7))
    return folder


def levels(name: str) -> Floats:
    """Return the luma of a photograph, without what is left beside whole blocks."""
    image = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None]
    height, width = (side // BLOCK * BLOCK for side in image.shape[2:])
    found: Floats = luma(image)[0, 0, :height, :width].numpy()
    return found


def _rows(whole: Floats) -> Floats:
    """Compute the features of its blocks, and leave out those without variation."""
    rows = np.hstack([block_features(whole, BLOCK), block_features(halve(whole), BLOCK // 2)])
    return rows[~np.isnan(rows).any(axis=1)]
