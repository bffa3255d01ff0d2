"""Fidelity by formulas alone, on 8-bit RGB images.

PSNR and MS-SSIM are as the paper's tables have them: pyiqa's definitions, which the authors'
scripts call. SSIM is as PMRF's evaluation has it: BasicSR's definition. IndRMSE, which stands in
for the error where there is no HQ image, is defined by the paper's authors and by PMRF's.
Images are uint8 [B, 3, H, W]; results are float64 [B], one value per image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.metrics.catalog import Judge

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
# A window must fit the last scale.
MIN_SIDE = (WINDOW - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
LUMA = (299, 587, 114)  # Y of YIQ, in thousandths


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over all three channels, in dB; 80 for equal images.

    Raises:
        TypeError: not uint8.
        ValueError: different shapes.
    """
    return 10 * torch.log10(1 / (_mean_square(images, reference) + 1e-8))


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of the three channels, in [-1, 1]; 1 for equal images.

    Wang et al. 2004 on levels of 0 to 255: a Gaussian window of 11 x 11 pixels and sigma 1.5, at
    the places where it is within the image; the mean over places and channels. Nothing is cropped.

    Raises:
        TypeError: not uint8.
        ValueError: different shapes, or a side below 11 pixels.
    """
    check_pair(images, reference, WINDOW, "the window needs")
    x, y = (some.double().contiguous() for some in (images, reference))  # colour by colour
    luminance, contrast = _similarities(x, y)
    return (luminance * contrast).mean(dim=(1, 2, 3))


def indrmse(images: Tensor, posterior_mean: Tensor) -> Tensor:
    """IndRMSE of the paper's authors: root of the mean square, in units of the range, [0, 1].

    An image without HQ is compared with its posterior mean, as it was saved in 8 bits. The expected
    squared error is the expected square of this difference and the error of the posterior mean,
    which is the same for all restorers: so they are ranked without HQ. A set's values are averaged.

    Raises:
        TypeError: not uint8.
        ValueError: different shapes.
    """
    return _mean_square(images, posterior_mean).sqrt()


def indrmse_pmrf(images: Tensor, posterior_mean: Tensor) -> Tensor:
    """IndRMSE of PMRF's authors before its root: the mean square, in levels squared, [0, 255^2].

    They take the root of a whole set's mean (the catalogue's ``pooled="root_mean"``), which is in
    levels and never less than the mean of the roots.

    Raises:
        TypeError: not uint8.
        ValueError: different shapes.
    """
    return _mean_square(images, posterior_mean) * 255**2


def ms_ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Multi-scale structural similarity of the luma, in [0, 1]; 1 for equal images.

    Raises:
        TypeError: not uint8.
        ValueError: different shapes, or a side below 161 pixels.
    """
    check_pair(images, reference, MIN_SIDE, "the last of five scales needs")
    x, y = luma(images), luma(reference)
    result = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for weight in SCALE_WEIGHTS[:-1]:
        _, contrast = _similarities(x, y)
        result = result * contrast.relu().mean(dim=(1, 2, 3)) ** weight
        x, y = _halve(x), _halve(y)
    luminance, contrast = _similarities(x, y)
    return result * (luminance * contrast.relu()).mean(dim=(1, 2, 3)) ** SCALE_WEIGHTS[-1]


def load_psnr(*_: object) -> Judge:
    """Return `psnr` for the catalogue: a formula, without weights."""
    return Judge(psnr)


def load_ssim(*_: object) -> Judge:
    """Return `ssim` for the catalogue: a formula, without weights."""
    return Judge(ssim)


def load_ms_ssim(*_: object) -> Judge:
    """Return `ms_ssim` for the catalogue: a formula, without weights."""
    return Judge(ms_ssim)


def load_indrmse(variant: str, *_: object) -> Judge:
    """Return `indrmse` ("authors") or `indrmse_pmrf` ("pmrf") for the catalogue."""
    return Judge({"authors": indrmse, "pmrf": indrmse_pmrf}[variant])


def check_pair(images: Tensor, reference: Tensor, min_side: int = 1, why: str = "") -> None:
    """Refuse what cannot be compared: floats, unequal shapes, a side below ``min_side``."""
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
    if min(images.shape[2:]) < min_side:
        raise ValueError(
            f"images of {images.shape[2]} x {images.shape[3]} pixels: {why} sides of at least "
            f"{min_side}"
        )


def _mean_square(images: Tensor, reference: Tensor) -> Tensor:
    """Return the mean squared difference of values in [0, 1], [B]."""
    check_pair(images, reference)
    error = (images.double() - reference.double()) / 255
    return error.square().mean(dim=(1, 2, 3))


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


def _similarities(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Compare the luminance and the contrast of x and y [B, C, H, W]: [B, C, H - 10, W - 10] each.

    Their product is the map of SSIM. The contrast is negative where structures are opposite.
    """
    at = torch.arange(WINDOW, dtype=torch.float64, device=x.device) - WINDOW // 2
    window = torch.exp(-at.square() / (2 * SIGMA**2))
    window = (window / window.sum()).expand(x.shape[1], 1, 1, WINDOW)

    def blur(image: Tensor) -> Tensor:
        # by groups: channels as a batch of images of one take PyTorch three times as long on a CPU
        rows = F.conv2d(image, window.transpose(2, 3), groups=image.shape[1])
        return F.conv2d(rows, window, groups=image.shape[1])

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    contrast = (2 * covariance + C2) / (variance_x + variance_y + C2)
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return luminance, contrast
