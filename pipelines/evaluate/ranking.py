"""Which method is best in a metric and which is second, where the intervals support it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from models.metrics.catalog import METRICS

Mark = Literal["best", "second"]


def ranked(values: Mapping[str, float | None], higher_is_better: bool) -> list[str]:
    """Order methods from the best value on; those without a value are left out."""
    defined = {name: value for name, value in values.items() if value is not None}
    return sorted(defined, key=lambda name: defined[name], reverse=higher_is_better)


def ranked_in(metric: str, values: Mapping[str, float | None]) -> list[str]:
    """Order methods from the best value of a metric on.

    What is the posterior mean itself is at no distance from it, and has no rank there.
    """
    itself = 0 if METRICS[metric].against == "posterior_mean" else None
    others = {name: value for name, value in values.items() if value != itself}
    return ranked(others, METRICS[metric].higher_is_better)


def marks(order: Sequence[str], leads: Callable[[str, str], bool]) -> dict[str, Mark]:
    """Mark the best and the second of a metric.

    Best is who clearly leads every other method. Second is who clearly leads all but the best, and
    there is none without a best. So a mark is never a matter of which pictures were drawn, and a
    tie has none.

    Args:
        order: the methods, from the best value on.
        leads: whether the interval of the difference of two methods supports that the first of
            them is better.
    """
    found: dict[str, Mark] = {}
    names: tuple[Mark, Mark] = ("best", "second")
    for place, (mark, method) in enumerate(zip(names, order, strict=False)):
        behind = order[place + 1 :]
        if not behind or not all(leads(method, other) for other in behind):
            break
        found[method] = mark
    return found
