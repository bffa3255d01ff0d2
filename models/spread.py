"""How much several restorations of one face differ: what the model is unsure of, pixel by pixel.

The spread is the standard deviation of the samples (with K - 1), in levels of 255, averaged over
the three channels. As a picture it runs from black over red and yellow to white, so that a program
reads it back from the sum of the channels: R + G + B = 50 x spread; white is 15.3 levels or more.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[np.uint8]
"""RGB [H, W, 3]."""
Spread = npt.NDArray[np.float64]
"""[H, W], in levels."""

STEPS = 50  # of the picture's scale for a level


def spread(samples: Iterable[Levels]) -> Spread:
    """Return the spread of at least two samples, each seen once (Welford 1962).

    Raises:
        ValueError: fewer than two.
    """
    mean: npt.NDArray[np.float64] = np.zeros(())
    squares, count = mean, 0
    for count, sample in enumerate(samples, start=1):
        above = sample - mean
        mean = mean + above / count
        squares = squares + above * (sample - mean)
    if count < 2:
        raise ValueError(f"{count} sample has no spread: give at least two")
    return np.asarray(np.sqrt(squares / (count - 1)).mean(axis=2))


def picture(spread: Spread) -> Levels:
    """Draw a spread as RGB uint8 [H, W, 3]; what is above 15.3 levels is white."""
    total = np.rint(spread * STEPS)
    channels = [(total - start).clip(0, 255) for start in (0, 255, 510)]
    return np.stack(channels, axis=2).astype(np.uint8)
