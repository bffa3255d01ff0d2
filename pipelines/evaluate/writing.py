"""How the values of an evaluation are written, on the terminal and on the page."""

import math
from collections.abc import Iterable, Mapping, Sequence

from models.metrics.catalog import METRICS
from pipelines.evaluate.summary import Value

DIGITS = 4  # of the largest value of a row
MOST_DECIMALS = 6


def arrow(metric: str) -> str:
    """Return an arrow that says which way a metric is better."""
    return "↑" if METRICS[metric].higher_is_better else "↓"


def named(metric: str) -> str:
    """Return a metric's name with its arrow."""
    return f"{metric} {arrow(metric)}"


def decimals(values: Iterable[float | None]) -> int:
    """Return how many decimals give the largest of some values four digits."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    if largest == 0 or not math.isfinite(largest):
        return DIGITS
    return min(MOST_DECIMALS, max(0, DIGITS - 1 - math.floor(math.log10(largest))))


def number(value: float, places: int) -> str:
    """Write a value with as many decimals."""
    return f"{value:,.{places}f}"


def interval(low: float | None, high: float | None, places: int) -> str:
    """Write an interval; "" where there is none."""
    if low is None or high is None:
        return ""
    return f"[{number(low, places)}, {number(high, places)}]"


def written(values: Sequence[Value | None]) -> list[str]:
    """Write values of one metric with equally many decimals, each with its interval; - for none."""
    places = decimals(one.value for one in values if one is not None)
    return [
        f"{number(one.value, places)} {interval(one.low, one.high, places)}".rstrip()
        if one is not None and one.value is not None
        else "-"
        for one in values
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a table for the terminal, a line for each row, whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def by_reason(missing: Mapping[str, str]) -> dict[str, list[str]]:
    """Group the metrics that could not be computed by what is said of them, such as a file."""
    found: dict[str, list[str]] = {}
    for name, why in missing.items():
        found.setdefault(why, []).append(name)
    return found
