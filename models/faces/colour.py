"""The input's colours for a restored face whose own have shifted.

    restored + L(input - restored)

in sRGB levels, with L the mean of each channel, or what is smooth: a Gaussian. What is finer than L
is the restorer's. How far colours are apart is the mean CIELAB distance (CIE 1976) of what is
smooth in both, so that neither texture nor noise counts.
"""

from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from skimage.color import rgb2lab

Pixels = npt.NDArray[np.uint8]
"""RGB uint8 [H, W, 3]."""
Colour = Literal["off", "mean", "low-pass"]

WIDTH = 1 / 16  # standard deviation of the Gaussian, in sides of the crop: the size of an eye
STEP = 4  # every which pixel of a smooth picture is compared


def with_colours_of(restored: Pixels, lq: Pixels, rule: Colour) -> Pixels:
    """Give a restored face the input's colours.

    Args:
        restored: RGB uint8 [H, W, 3].
        lq: what it was restored from, of the same shape.
        rule: off leaves it as it is; mean moves all pixels alike; low-pass gives it all that is
            smooth in the input, light and shade included.
    """
    if rule == "off":
        return restored
    apart = lq.astype(np.float32) - restored
    moved = apart.mean(axis=(0, 1)) if rule == "mean" else _smooth(apart)
    return np.rint(restored + moved).clip(0, 255).astype(np.uint8)


def colour_difference(restored: Pixels, lq: Pixels) -> float:
    """Return how far the colours of two pictures are apart, in CIELAB: 2.3 is just seen."""
    one, other = (
        rgb2lab(_smooth(pixels.astype(np.float32))[::STEP, ::STEP] / 255)
        for pixels in (restored, lq)
    )
    return float(np.linalg.norm(one - other, axis=2).mean())


def _smooth(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    smoothed: npt.NDArray[np.float32] = cv2.GaussianBlur(
        values, (0, 0), WIDTH * values.shape[0], borderType=cv2.BORDER_REFLECT_101
    )
    return smoothed
