"""Filters, each of which returns the reason to drop a scored candidate, or None to keep it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
Filter = Callable[[Row], str | None]


def already_dropped(row: Row) -> str | None:
    """Return the reason that an earlier stage gave, such as unreadable or too small."""
    reason: str | None = row["drop_reason"]
    return reason


def unscorable(row: Row) -> str | None:
    """Drop a candidate for which the scorer has no number, such as a patch of one colour."""
    return "unscorable" if row["quality"] is None or math.isnan(row["quality"]) else None


def quality_worse_than(threshold: float, *, higher_is_better: bool) -> Filter:
    """Make the filter that drops what is strictly worse than the threshold; equal is kept."""

    def low_quality(row: Row) -> str | None:
        kept = row["quality"] >= threshold if higher_is_better else row["quality"] <= threshold
        return None if kept else "low_quality"

    return low_quality


def score_filters(threshold: float | None, *, higher_is_better: bool) -> tuple[Filter, ...]:
    """Return the filters of a set, in order; without a threshold everything usable is kept."""
    if threshold is None:
        return (already_dropped,)
    worse = quality_worse_than(threshold, higher_is_better=higher_is_better)
    return (already_dropped, unscorable, worse)


def drop_reason(row: Row, filters: tuple[Filter, ...]) -> str | None:
    """Return the first reason to drop a candidate; None keeps it."""
    return next((reason for check in filters if (reason := check(row)) is not None), None)
