"""Mean-subtracted, contrast-normalised coefficients, of which BRISQUE and NIQE take statistics.

(I - mu) / (sigma + C), with the mean mu and the deviation sigma of a Gaussian window of 7 x 7
pixels (Mittal et al. 2012, Eqs. 1 to 3).
"""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
WINDOW, SIGMA = 7, 7 / 6  # section III-A


def coefficients(levels: Floats, c: float, rounding: float, border: int) -> Floats:
    """Subtract the local mean, divide by the local deviation.

    Args:
        levels: an image [H, W].
        c: the constant C, in the units of the levels.
        rounding: what a local mean may err by; smaller differences from it count as none.
        border: OpenCV's kind of border, which says what lies outside the image.
    """
    kernel = cv2.getGaussianKernel(WINDOW, SIGMA)

    def local(values: Floats) -> Any:
        return cv2.sepFilter2D(values, -1, kernel, kernel, borderType=border)

    mean = local(levels)
    deviation = np.sqrt(np.abs(local(levels * levels) - mean * mean))
    difference = levels - mean
    difference[np.abs(difference) < rounding] = 0
    normalised: Floats = difference / (deviation + c)
    return normalised
