"""Ladders of known degradations: a photograph, and the same one damaged more and more."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import data
from torch import Tensor

Pixels = npt.NDArray[np.uint8]

PICTURES = {"astronaut": (20, 140), "coffee": (60, 200), "chelsea": (60, 120)}  # corners of crops


def blur(pixels: Pixels, sigma: float) -> Pixels:
    """Blur by a Gaussian."""
    smooth = gaussian_filter(pixels.astype(float), (sigma, sigma, 0))
    return np.rint(smooth).astype(np.uint8)


def noise(pixels: Pixels, sigma: float) -> Pixels:
    """Add Gaussian noise, of one seed for all rungs."""
    drawn = np.random.default_rng(0).normal(0, sigma, pixels.shape)
    return np.rint(pixels + drawn).clip(0, 255).astype(np.uint8)


def jpeg(pixels: Pixels, quality: float) -> Pixels:
    """Compress by JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


def downscale(pixels: Pixels, factor: float) -> Pixels:
    """Reduce by bicubic interpolation and enlarge again."""
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((int(width / factor), int(height / factor)))
    return np.asarray(small.resize((width, height)))


def cast(pixels: Pixels, levels: float) -> Pixels:
    """Shift the colours and leave the luma: 4 x 0.299 - 3 x 0.587 + 5 x 0.114 = 0.005."""
    return (pixels + np.array([4, -3, 5]) * int(levels)).astype(np.uint8)


LADDERS: dict[str, tuple[Callable[[Pixels, float], Pixels], Sequence[float]]] = {
    "blur": (blur, (1, 2, 4)),
    "noise": (noise, (15, 30, 60)),  # less than that, BRISQUE takes for texture in a smooth one
    "jpeg": (jpeg, (80, 30, 8)),
    "downscale": (downscale, (2, 4, 8)),
    "cast": (cast, (1, 3, 8)),
}


def rungs(picture: str, ladder: str, side: int) -> tuple[Tensor, Tensor]:
    """Degrade a photograph more and more.

    Returns:
        The photograph and its degradations, [4, 3, side, side], and the photograph beside each.
    """
    top, left = PICTURES[picture]
    crop = getattr(data, picture)()[top : top + side, left : left + side]
    hq = (48 + crop * (160 / 255)).astype(np.uint8)  # so that no cast is clamped
    degrade, strengths = LADDERS[ladder]
    all_ = np.stack([hq, *(degrade(hq, strength) for strength in strengths)])
    images = torch.from_numpy(all_).permute(0, 3, 1, 2).contiguous()
    return images, images[:1].expand_as(images)
