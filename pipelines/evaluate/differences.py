"""How much two methods differ on the same pictures, with the interval of the difference."""

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from models.metrics.catalog import METRICS
from pipelines.evaluate.bootstrap import (
    Floats,
    interval,
    mean_of_defined,
    recentred,
    resampled_means,
)
from pipelines.evaluate.summary import Difference


def pooled(name: str, means: Floats | float) -> Floats:
    """Return the values of a metric for means over pictures."""
    root = METRICS[name].pooled == "root_mean"
    return np.asarray(np.sqrt(means) if root else means, dtype=np.float64)


def paired(metric: str, columns: Mapping[str, Floats], resamples: int) -> Iterator[Difference]:
    """Yield the difference of every two methods in a metric of single pictures.

    Args:
        metric: its name.
        columns: by method, its values [n] of the same pictures in one order; NaN where it has none.
        resamples: for the intervals.

    Yields:
        The first minus the second, on the pictures where both have a value; nothing without any.
    """
    apart = {
        (first, second): columns[first] - columns[second]
        for first, second in combinations(columns, 2)
    }
    apart = {pair: values for pair, values in apart.items() if not np.isnan(values).all()}
    if not apart:
        return
    # means of differences, not differences of means: equal pictures then differ by exactly 0
    values = np.array([mean_of_defined(part) for part in apart.values()])
    again = resampled_means(np.stack([*apart.values()], axis=1), resamples)
    if METRICS[metric].pooled == "root_mean":  # sqrt a - sqrt b = (a - b) / (sqrt a + sqrt b)
        sums = [_sum_of_roots(columns, pair, resamples) for pair in apart]
        values = _ratio(values, np.array([one for one, _ in sums]))
        again = _ratio(again, np.stack([each for _, each in sums], axis=1))
    for place, (first, second) in enumerate(apart):
        low, high = interval(again[:, place])
        yield Difference(
            metric=metric,
            first=first,
            second=second,
            value=float(values[place]),
            low=low,
            high=high,
            n=int((~np.isnan(apart[first, second])).sum()),
        )


def _sum_of_roots(
    columns: Mapping[str, Floats], pair: tuple[str, str], resamples: int
) -> tuple[float, Floats]:
    """Add the roots of two methods' means over the pictures that both have, and of resamples."""
    mine, other = (columns[name] for name in pair)
    both = ~np.isnan(mine + other)
    held = [np.where(both, column, np.nan) for column in (mine, other)]
    again = np.sqrt(resampled_means(np.stack(held, axis=1), resamples)).sum(axis=1)
    return sum(mean_of_defined(column) ** 0.5 for column in held), again


def _ratio(above: Floats, below: Floats) -> Floats:
    """Divide; 0 / 0 is the difference of two perfect methods, which is 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def paired_sets(
    metric: str, distances: Mapping[str, tuple[float, Floats]], n: int
) -> Iterator[Difference]:
    """Yield the difference of every two methods in a metric of whole sets.

    Args:
        metric: its name.
        distances: by method, the distance, and those of resamples [r] of the same rows for all.
        n: pictures of a set.
    """
    for first, second in combinations(distances, 2):
        (mine, again), (other, again_other) = distances[first], distances[second]
        low, high = interval(recentred(again - again_other, mine - other))
        yield Difference(
            metric=metric,
            first=first,
            second=second,
            value=mine - other,
            low=low,
            high=high,
            n=n,
        )


def leads(difference: Difference, one: str) -> bool:
    """Tell whether a method is better than the other one, and the interval supports it.

    Args:
        difference: of the two methods.
        one: the name of the method that should be better.
    """
    is_larger = (difference.low > 0) == (difference.first == one)
    return difference.is_clear and is_larger == METRICS[difference.metric].higher_is_better
