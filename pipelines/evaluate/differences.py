"""How much two methods differ on the same pictures, with the interval of the difference."""

import numpy as np

from models.metrics.catalog import METRICS
from pipelines.evaluate.bootstrap import Floats, interval, mean_of_defined, resampled_means
from pipelines.evaluate.summary import Difference


def pooled(name: str, means: Floats | float) -> Floats:
    """Return the values of a metric for means over pictures."""
    root = METRICS[name].pooled == "root_mean"
    return np.asarray(np.sqrt(means) if root else means, dtype=np.float64)


def paired(
    metric: str, methods: tuple[str, str], columns: tuple[Floats, Floats], resamples: int
) -> Difference | None:
    """Compare two methods in a metric of single pictures.

    Args:
        metric: its name.
        methods: names of the first and the second.
        columns: their values [n] of the same pictures in one order; NaN where one is not defined.
        resamples: for the interval.

    Returns:
        The first minus the second, on the pictures where both are defined; None if there is none.
    """
    mine, other = columns
    both = ~(np.isnan(mine) | np.isnan(other))
    if not both.any():
        return None
    held = np.where(both[:, None], np.stack(columns, axis=1), np.nan)
    again = pooled(metric, resampled_means(held, resamples))
    low, high = interval(again[:, 0] - again[:, 1])
    first, second = (pooled(metric, mean_of_defined(values)) for values in held.T)
    return Difference(
        metric=metric,
        first=methods[0],
        second=methods[1],
        value=float(first - second),
        low=low,
        high=high,
        n=int(both.sum()),
    )


def leads(difference: Difference, one: str) -> bool:
    """Tell whether a method is better than the other one, and the interval supports it.

    Args:
        difference: of the two methods.
        one: the name of the method that should be better.
    """
    is_larger = difference.low > 0 if difference.first == one else difference.high < 0
    is_smaller = difference.high < 0 if difference.first == one else difference.low > 0
    return is_larger if METRICS[difference.metric].higher_is_better else is_smaller
