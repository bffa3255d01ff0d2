"""Fidelity as the paper's tables have it: PSNR and MS-SSIM, on 8-bit RGB images.

Both are pyiqa's definitions, which the authors' scripts call. Images are uint8 [B, 3, H, W];
results are float64 [B], one value per image: the tables average them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.metrics.catalog import Judge

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
MIN_SIDE = (WINDOW - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1  # a window must fit the last scale
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
LUMA = (299, 587, 114)  # Y of YIQ, in thousandths


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over all three channels, in dB; 80 for equal images.

    Raises:
        TypeError: not uint8.
        ValueError: different shapes.
    """
    _check(images, reference)
    error = (images.double() - reference.double()) / 255
    return 10 * torch.log10(1 / (error.square().mean(dim=(1, 2, 3)) + 1e-8))


def ms_ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Multi-scale structural similarity of the luma, in [0, 1]; 1 for equal images.

    Raises:
        TypeError: not uint8.
        ValueError: different shapes, or a side below 161 pixels.
    """
    _check(images, reference)
    if min(images.shape[2:]) < MIN_SIDE:
        raise ValueError(
            f"images of {images.shape[2]} x {images.shape[3]} pixels: the last of five scales "
            f"needs sides of at least {MIN_SIDE}"
        )
    x, y = luma(images), luma(reference)
    result = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for weight in SCALE_WEIGHTS[:-1]:
        result = result * _ssim(x, y)[1] ** weight
        x, y = _halve(x), _halve(y)
    return result * _ssim(x, y)[0] ** SCALE_WEIGHTS[-1]


def load_psnr(*_: object) -> Judge:
    """Return `psnr` for the catalogue: a formula, without variants or weights."""
    return Judge(psnr)


def load_ms_ssim(*_: object) -> Judge:
    """Return `ms_ssim` for the catalogue: a formula, without variants or weights."""
    return Judge(ms_ssim)


def _check(images: Tensor, reference: Tensor) -> None:
    for tensor in (images, reference):
        if tensor.dtype != torch.uint8:
            raise TypeError(
                f"images are {tensor.dtype}: give uint8, as `models.ranges.to_uint8` makes them"
            )
    if images.shape != reference.shape or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images {list(images.shape)} and reference {list(reference.shape)}: expected one "
            "shape [B, 3, H, W]"
        )


def luma(images: Tensor) -> Tensor:
    """Return Y in whole levels, half to even, float64 [B, 1, H, W].

    One pixel in a thousand lies halfway between two levels. Sums of whole thousandths are exact in
    any order, and so is half of a level after the division; of 0.299 R + 0.587 G + 0.114 B in
    floats, the order of the sum, which depends on processor and batch, would decide where it goes.
    """
    weights = torch.tensor(LUMA, dtype=torch.float64, device=images.device)
    thousandths = torch.einsum("bchw,c->bhw", images.double(), weights)
    return (thousandths / 1000).round()[:, None]


def _halve(x: Tensor) -> Tensor:
    """Average 2 x 2 pixels; an odd side gets a zero at both ends, which counts, as in pyiqa."""
    return F.avg_pool2d(x, 2, padding=[side % 2 for side in x.shape[2:]])


def _ssim(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means over the map of SSIM and of its contrast part, [B]; negatives count as 0."""
    at = torch.arange(WINDOW, dtype=torch.float64, device=x.device) - WINDOW // 2
    window = torch.exp(-at.square() / (2 * SIGMA**2))
    window /= window.sum()

    def blur(image: Tensor) -> Tensor:
        rows = F.conv2d(image, window.view(1, 1, -1, 1))
        return F.conv2d(rows, window.view(1, 1, 1, -1))

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    contrast = ((2 * covariance + C2) / (variance_x + variance_y + C2)).relu()
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return (luminance * contrast).mean(dim=(1, 2, 3)), contrast.mean(dim=(1, 2, 3))
