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
    both = {
        (first, second): ~np.isnan(columns[first] + columns[second])
        for first, second in combinations(columns, 2)
    }
    pairs = [pair for pair, rows in both.items() if rows.any()]
    if not pairs:
        return
    parts = [np.where(both[pair], columns[name], np.nan) for pair in pairs for name in pair]
    again = pooled(metric, resampled_means(np.stack(parts, axis=1), resamples))
    values = [float(pooled(metric, mean_of_defined(part))) for part in parts]
    for place, (first, second) in enumerate(pairs):
        mine, other = 2 * place, 2 * place + 1
        low, high = interval(again[:, mine] - again[:, other])
        yield Difference(
            metric=metric,
            first=first,
            second=second,
            value=values[mine] - values[other],
            low=low,
            high=high,
            n=int(both[first, second].sum()),
        )


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
