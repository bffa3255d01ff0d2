"""How far a mean can be trusted: percentile intervals of the bootstrap over images (Efron 1979).

The images of a test set are one draw of all that it could hold. Means of resampled images, drawn
with replacement and equal for all methods, vary as means of other draws would. Which images a
resample holds is a function of (seed, n), so that a value's interval is the same in every run.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
COVERAGE = 0.95
BLOCK = 1 << 24  # weights that are held at once


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
    defined = ~np.isnan(columns)
    values, counted = np.where(defined, columns, 0.0), defined.astype(np.float64)
    means = np.full((resamples, columns.shape[1]), np.nan)
    first = 0
    for weights in _weights(seed, len(columns), resamples):
        block = slice(first, first := first + len(weights))
        totals = weights @ counted
        np.divide(weights @ values, totals, out=means[block], where=totals > 0)
    return means


def _weights(seed: int, count: int, resamples: int) -> Iterable[Floats]:
    """Return how often each row is in each resample [block, count], block by block."""
    if count * resamples <= BLOCK:
        return _kept_weights(seed, count, resamples)
    return _drawn_weights(seed, count, resamples)


def _drawn_weights(seed: int, count: int, resamples: int) -> Iterator[Floats]:
    rng, size = np.random.default_rng([seed, count]), max(1, BLOCK // max(1, count))
    for first in range(0, resamples, size):
        block = min(size, resamples - first)
        yield rng.multinomial(count, np.full(count, 1 / count), size=block).astype(np.float64)


@lru_cache(maxsize=1)
def _kept_weights(seed: int, count: int, resamples: int) -> tuple[Floats, ...]:
    """Draw them once for all metrics and pairs of methods: drawing takes longer than using."""
    return tuple(_drawn_weights(seed, count, resamples))


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
    """Compute a statistic of whole sets on resampled rows.

    A Frechet distance of a resample is larger than that of the set, for it has fewer different
    images. So the values say how much a distance varies, and `centred` moves them to where it is.

    Args:
        count: rows of the set.
        resamples: how many.
        statistic: from row numbers [count] to a number.
        seed: of the resamples; the same for sets that are to be compared.
    """
    rng = np.random.default_rng([seed, count])
    return np.array([statistic(rng.integers(0, count, count)) for _ in range(resamples)])


def centred(resampled: Floats, value: float) -> Floats:
    """Move resampled values so that their mean is the value of the set itself."""
    excess = float(resampled.mean()) - value
    return resampled - excess
