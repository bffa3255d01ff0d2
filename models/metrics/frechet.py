"""The Frechet distance between two sets of features, seen as Gaussians (Heusel et al. 2017).

    |mu_1 - mu_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^(1/2)

With C = F^T F for a factor F of each covariance, the eigenvalues of C_1 C_2 are the squares of the
singular values of F_1 F_2^T, so that the last trace is the sum of these. It needs no root of a
matrix that is singular below as many images as features, no multiple of the identity added to it,
and gives no imaginary part to drop. The factor of n features is their centred [n, D] matrix over
sqrt(n - 1), or, where n > D, the triangle [D, D] of its QR decomposition; so that nothing larger
than the features is ever held.
"""

import warnings
from pathlib import Path
from typing import NamedTuple, Self
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from models.checkpoint import CheckpointError, CheckpointNotFoundError

REFERENCE = (
    "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
    "ffhq_clean_trainval70k_512.npz"
)
ENOUGH = 2048  # images; with fewer than Inception's features a covariance has not full rank
ROWS = 8192  # features at a time that a triangle takes in
TOLERANCE = 1e-6  # of the largest: by how much a stored covariance's entries or eigenvalues may err


class Statistics(NamedTuple):
    """Mean and covariance of a set's features, the covariance as a factor."""

    mean: Tensor
    """[D], float64."""
    factor: Tensor
    """F [r, D], float64: the covariance is F^T F."""
    images: int | None = None
    """How many they are of; None where a file does not say it."""

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Compute them from features [n, D], n >= 2; the covariance divides by n - 1.

        Raises:
            ValueError: not two dimensions, fewer than two rows, or a value that is not finite.
        """
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features {list(features.shape)}: give [n, D], n at least 2")
        # a block at a time: in float64 the features may be larger than what is left of the memory
        blocks = torch.split(features, ROWS)
        mean = torch.stack([block.double().sum(dim=0) for block in blocks]).sum(dim=0)
        mean /= len(features)
        if not mean.isfinite().all():
            raise ValueError("features have values that are not finite")
        factor = _triangle(features, mean) / (len(features) - 1) ** 0.5
        return cls(mean, factor, len(features))

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor) -> Self:
        """Take a mean [D] and a covariance [D, D], as files of statistics hold them.

        Raises:
            ValueError: shapes that do not fit, or what is not the covariance of anything.
        """
        mean, covariance = mean.double(), covariance.double()
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"mean {list(mean.shape)} and covariance {list(covariance.shape)}: expected [D] "
                "and [D, D]"
            )
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError("mean or covariance have values that are not finite")
        size = covariance.abs().max()
        values, vectors = torch.linalg.eigh(covariance)
        skew = (covariance - covariance.T).abs().max()
        if skew > TOLERANCE * size or values[0] < -TOLERANCE * values[-1].abs():
            raise ValueError(
                f"no covariance: asymmetric by {skew:.3g}, eigenvalues from {values[0]:.3g} to "
                f"{values[-1]:.3g}"
            )
        return cls(mean, values.clamp(min=0).sqrt()[:, None] * vectors.T)


def _triangle(features: Tensor, mean: Tensor) -> Tensor:
    """Factor the sum of squares of centred features: R [min(n, D), D] with R^T R equal to it.

    The rows are taken in a block at a time, R of the earlier ones on top of them.
    """
    blocks = iter(torch.split(features, max(ROWS, features.shape[1])))
    factor: Tensor = next(blocks).double() - mean
    for block in blocks:
        factor = torch.linalg.qr(torch.cat([factor, block.double() - mean]), mode="r").R
    if len(factor) > factor.shape[1]:
        factor = torch.linalg.qr(factor, mode="r").R
    return factor


def frechet_distance(x: Tensor | Statistics, y: Tensor | Statistics) -> float:
    """Compute the distance of two sets, each given by features [n, D] or by its statistics.

    Warns where a set is known to have fewer than `ENOUGH`: the value depends on n more than on the
    images, and compares only with values of exactly as many.

    Raises:
        ValueError: see `Statistics`; or features of different widths.
    """
    a, b = (given if isinstance(given, Statistics) else Statistics.of(given) for given in (x, y))
    for given in (a, b):
        if given.images is not None and given.images < ENOUGH:
            warnings.warn(
                f"a Frechet distance of {given.images} images, below {ENOUGH}: it is biased "
                "upwards, and compares only with distances of equally many images",
                stacklevel=2,
            )
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of {len(a.mean)} and of {len(b.mean)} values: of two different networks"
        )
    traces = a.factor.square().sum() + b.factor.square().sum()
    shared = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    distance = float((a.mean - b.mean).square().sum() + traces - 2 * shared)
    return max(distance, 0.0)  # of equal sets the rounding may be on either side


def read_statistics(path: str | Path) -> Statistics:
    """Read a published file of a reference's statistics: an .npz with `mu` [D] and `sigma` [D, D].

    Such is pyiqa's `ffhq_clean_trainval70k_512.npz`, of Inception's features after the clean
    resize. No file says which network and resize it is of: its digest stands in the fingerprint.

    Raises:
        CheckpointError: missing, damaged, or without the two.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointNotFoundError(
            f"{path}: no such file; give an .npz with mu [D] and sigma [D, D], such as {REFERENCE}"
        )
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            mean, covariance = (torch.from_numpy(file[name]) for name in ("mu", "sigma"))
        return Statistics.from_moments(mean, covariance)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise CheckpointError(
            f"{path}: no statistics of a reference ({error}); expected an .npz with mu [D] and "
            f"sigma [D, D], such as {REFERENCE}. Download it again"
        ) from error
