"""Whether a restored face still agrees with its degraded picture, as far as that picture tells.

A degraded picture (LQ) knows its face only at low frequencies: finer detail is gone, or is noise.
Faces follow one law: beyond about two cycles a picture, the power at f falls as f^-2.8. `scale`
looks for where LQ leaves it, downwards by blur or upwards by noise, and says how many pixels then
make one that LQ still knows. `disagreement` degrades the restored face again, by a Gaussian low
pass sixteen times as wide as that scale, treats LQ in the same way, and compares the two. Noise and
the blocks of a JPEG average out there; another person, shifted content or colours do not.

What it is not: a measure of identity or quality. It sees nothing finer than that Gaussian, and a
restored face with an invented mouth, which any number of real ones would agree with, passes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

Levels = npt.NDArray[np.uint8]
"""RGB [side, side, 3]."""
Spectrum = npt.NDArray[np.float64]

SLOPE = 2.8  # of the power of aligned faces: f^-2.8 in all sets that were looked at
LOWEST, HIGHEST = 1.5, 6  # cycles a picture; four half octaves that fix the law's height
DEPARTURE = 8  # factor of the power from the law at which LQ knows nothing
WIDER = 16  # the low pass than the scale, by which noise and blocks are averaged
COARSEST = 0.7  # cycles a picture at which the low pass halves the power, at least
ROUNDING = 1 / 12  # power of the rounding to levels
MIN_SIDE = 16
THRESHOLD = 4.2
"""Disagreement in levels above which a restored face deserves a warning: one true face in a hundred
disagrees with its own LQ by more (99th percentiles of 3.7, 4.1 and 4.2 for draws of the paper's
degradation at 128, 256 and 512 pixels)."""


@dataclass(frozen=True, slots=True)
class Consistency:
    """How a restored face stands to its LQ."""

    scale: float
    """Pixels of the picture that make one of those that LQ still knows, from 1 up."""
    disagreement: float
    """Root mean square of what differs at the scale, in levels of 255."""

    @property
    def is_doubtful(self) -> bool:
        """Whether the two disagree by more than a true face and its LQ nearly ever do."""
        return self.disagreement > THRESHOLD


def consistency(restored: Levels, lq: Levels) -> Consistency:
    """Compare a restored face with the LQ that it was restored from.

    Args:
        restored: RGB [side, side, 3], uint8.
        lq: of the same shape.

    Raises:
        TypeError: not uint8.
        ValueError: different shapes, not square, or a side below 16 pixels.
    """
    _check(restored, lq)
    known = scale(lq)
    return Consistency(known, disagreement(restored, lq, known))


def scale(lq: Levels) -> float:
    """Estimate how many pixels of LQ make one that it still knows.

    The limit is the middle of the last band, half an octave wide, in which the power of the luma
    is within a factor of 8 of A f^-2.8; A comes from the bands between 1.5 and 6 cycles. Several
    draws of one blur and size give limits that differ by half an octave or so.
    """
    side = len(lq)
    power = dctn(lq.mean(axis=2), norm="ortho") ** 2
    at = _cycles(side)
    edges = LOWEST * 2 ** (np.arange(np.ceil(2 * np.log2(side / 2 / LOWEST)) + 1) / 2)
    band = np.digitize(at, edges[:-1]) - 1
    inside = (band >= 0) & (at < side / 2)
    count = np.bincount(band[inside])
    mean = np.bincount(band[inside], power[inside]) / count
    middle = np.sqrt(edges[:-1] * edges[1:])
    law = np.log(mean + ROUNDING) + SLOPE * np.log(middle)
    fixed = middle < HIGHEST
    departed = np.abs(law - law[fixed].mean()) > np.log(DEPARTURE)
    departed[:2] = False
    last = int(departed.argmax()) - 1 if departed.any() else len(middle) - 1
    return max(1.0, float(side / (2 * middle[last])))


def disagreement(restored: Levels, lq: Levels, known: float) -> float:
    """Return the RMSE of a restored face and LQ after a low pass, in levels of 255.

    The power of their difference, as a cosine transform has it, is weighed by 2^-(f / f_c)^2, where
    f_c = 1 / (32 scale) cycles a pixel, but never below 0.7 cycles a picture.
    """
    side = len(lq)
    power = (dctn(restored.astype(np.float64) - lq, axes=(0, 1), norm="ortho") ** 2).mean(axis=2)
    half = max(COARSEST, side / (2 * WIDER * known))
    weighed = power * np.exp2(-((_cycles(side) / half) ** 2))
    return float(np.sqrt(weighed.sum()) / side)


def _cycles(side: int) -> Spectrum:
    """Return the frequency of every coefficient of a cosine transform, in cycles a picture."""
    half_cycles = np.arange(side, dtype=np.float64)
    return np.hypot(half_cycles[:, None], half_cycles) / 2


def _check(restored: Levels, lq: Levels) -> None:
    for name, picture in (("restored", restored), ("lq", lq)):
        if picture.dtype != np.uint8:
            raise TypeError(f"{name} is {picture.dtype}: give levels, uint8 from 0 to 255")
    side = len(lq)
    if restored.shape != lq.shape or lq.shape != (side, side, 3) or side < MIN_SIDE:
        raise ValueError(
            f"restored {list(restored.shape)} and lq {list(lq.shape)}: give one shape "
            f"[side, side, 3] with a side of at least {MIN_SIDE} pixels"
        )
