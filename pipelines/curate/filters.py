"""Scored candidate -> kept, or dropped with a reason; the first predicate that speaks wins."""

import math
from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
Filter = Callable[[Row], str | None]

BROKEN = frozenset(
    {"unreadable", "empty_file", "not_an_image", "truncated", "too_many_pixels", "key_too_long"}
)
"""Reasons that count against ``--max-bad``: the file is at fault, not its content."""


def already_dropped(row: Row) -> str | None:
    """Keep the reason an earlier stage gave: unreadable, too small, and the like."""
    reason: str | None = row["drop_reason"]
    return reason


def unscorable(row: Row) -> str | None:
    """Drop what the scorer has no number for, such as a patch of one colour."""
    return "unscorable" if row["quality"] is None or math.isnan(row["quality"]) else None


def quality_worse_than(threshold: float, *, higher_is_better: bool) -> Filter:
    """Make the filter that drops what is strictly worse than the threshold; equal is kept."""

    def low_quality(row: Row) -> str | None:
        kept = row["quality"] >= threshold if higher_is_better else row["quality"] <= threshold
        return None if kept else "low_quality"

    return low_quality


def drop_reason(row: Row, filters: tuple[Filter, ...]) -> str | None:
    """Return the first reason to drop a candidate; None keeps it."""
    return next((reason for check in filters if (reason := check(row)) is not None), None)
