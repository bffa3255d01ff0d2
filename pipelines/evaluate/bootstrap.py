"""How far a mean can be trusted: percentile intervals of the bootstrap over images (Efron 1979).

The images of a test set are one draw of all that it could hold. Means of resampled images, drawn
with replacement and equal for all methods, vary as means of other draws would. Which images a
resample holds is a function of (seed, n), so that a value's interval is the same in every run, and
the differences of two methods are those on the same images.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
COVERAGE = 0.95
BLOCK = 1 << 22  # weights in float64 that are held at once


def mean_of_defined(values: Floats) -> float:
    """Return the mean of the values [n] that are not NaN; NaN where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def resampled_means(columns: Floats, resamples: int, seed: int = 0) -> Floats:
    """Average each column over resamples of the rows.

    Args:
        columns: [n, c]; NaN where an image has no value, which then counts in no mean.
        resamples: how many.
        seed: of the resamples; the same for columns that are to be compared.

    Returns:
        [resamples, c]; NaN where a resample has no defined value of a column.
    """
    count = len(columns)
    defined = ~np.isnan(columns)
    values, counted = np.where(defined, columns, 0.0), defined.astype(np.float64)
    means = np.full((resamples, columns.shape[1]), np.nan)
    size = max(1, BLOCK // max(1, count))
    for first in range(0, resamples, size):
        weights = _multiplicities(count, resamples, seed)[first : first + size].astype(np.float64)
        totals = weights @ counted
        np.divide(weights @ values, totals, out=means[first : first + size], where=totals > 0)
    return means


@lru_cache(maxsize=1)
def _multiplicities(count: int, resamples: int, seed: int) -> npt.NDArray[np.uint16]:
    """Count how often each row is in each resample [resamples, count]; drawing them is slow."""
    drawn = _drawn(count, resamples, seed)
    found = (np.bincount(rows, minlength=count).astype(np.uint16) for rows in drawn)
    return np.stack([*found])


def _drawn(count: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the row numbers [count] of each resample."""
    rng = np.random.default_rng([seed, count])
    for _ in range(resamples):
        yield rng.integers(0, count, count)


def interval(resampled: Floats) -> tuple[float, float]:
    """Return the percentile interval of resampled values [resamples]; NaN without any."""
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def resampled_rows(
    count: int, resamples: int, statistic: Callable[[npt.NDArray[np.int64]], float], seed: int = 0
) -> Floats:
    """Compute a statistic of whole sets on resampled rows, those of :func:`resampled_means`.

    Args:
        count: rows of the set.
        resamples: how many.
        statistic: from row numbers [count] to a number.
        seed: of the resamples; the same for sets that are to be compared.
    """
    return np.array([statistic(rows) for rows in _drawn(count, resamples, seed)])


def recentred(resampled: Floats, value: float) -> Floats:
    """Move resampled values [resamples] so that their mean is that of the whole set.

    A distance of whole sets is larger for a resample than for the set, because a resample has
    fewer different images, so that an interval of the distances as they are would often lie above
    the value. Moved, they say how much the distances of as many images vary.
    """
    return resampled - resampled.mean() + value if len(resampled) else resampled
