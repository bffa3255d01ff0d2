"""The columns of a table: order and groups of the paper's Table 4, names, and decimals."""

from typing import NamedTuple


class Column(NamedTuple):
    """How a metric is shown."""

    group: str
    label: str
    decimals: int


DISTORTION, PERCEPTUAL, IDENTITY, QUALITY, DISTANCE, PROXY = (
    "Distortion",
    "Perceptual similarity",
    "Face identity",
    "Quality without reference",
    "Distance of sets",
    "Difference to the posterior mean",
)
COLUMNS = {
    "psnr": Column(DISTORTION, "PSNR", 2),
    "ssim": Column(DISTORTION, "SSIM", 4),
    "ms_ssim": Column(DISTORTION, "MS-SSIM", 4),
    "colour": Column(DISTORTION, "Colour", 3),
    "lpips": Column(PERCEPTUAL, "LPIPS", 4),
    "lpips_vgg": Column(PERCEPTUAL, "LPIPS VGG", 4),
    "dists": Column(PERCEPTUAL, "DISTS", 4),
    "deg": Column(IDENTITY, "Deg.", 2),
    "deg_vqfr": Column(IDENTITY, "Deg. VQFR", 2),
    "lmd": Column(IDENTITY, "LMD", 3),
    "lmd_vqfr": Column(IDENTITY, "LMD VQFR", 3),
    "identity_dlib": Column(IDENTITY, "Identity dlib", 4),
    "landmarks_dlib": Column(IDENTITY, "Landmarks dlib", 3),
    "musiq": Column(QUALITY, "MUSIQ", 2),
    "qalign": Column(QUALITY, "Q-Align", 3),
    "clipiqa": Column(QUALITY, "CLIP-IQA", 4),
    "niqe": Column(QUALITY, "NIQE", 3),
    "brisque": Column(QUALITY, "BRISQUE", 2),
    "fid": Column(DISTANCE, "FID", 2),
    "fid_legacy": Column(DISTANCE, "FID legacy", 2),
    "fid_dinov2": Column(DISTANCE, "FID DINOv2", 2),
    "mmd_dinov2": Column(DISTANCE, "MMD DINOv2", 4),
    "mmd_dinov2_unbiased": Column(DISTANCE, "MMD DINOv2 unbiased", 4),
    "indrmse": Column(PROXY, "IndRMSE", 4),
    "indrmse_pmrf": Column(PROXY, "IndRMSE PMRF", 2),
}
"""Every metric of the catalogue."""


def ordered(names: set[str]) -> list[str]:
    """Put metrics into the order of the paper's table."""
    return [name for name in COLUMNS if name in names]


def labels(names: list[str]) -> str:
    """List metrics as the table names them."""
    return ", ".join(COLUMNS[name].label for name in names)


def shown(name: str, value: float) -> str:
    """Write a value with its metric's decimals; what rounds to 0 has no sign."""
    decimals = COLUMNS[name].decimals
    return f"{round(value, decimals) + 0.0:.{decimals}f}"
