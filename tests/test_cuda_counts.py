"""Counts of what the full-size networks would start on CUDA, and the rules they are counted by."""

import pytest

from tests.support.counted_passes import PASSES, allowed, row

RENEW = 'if the change is meant: python -m tests.support.counted_passes "why the counts changed"'


@pytest.mark.parametrize("name", PASSES)
def test_counts_are_those_of_the_table(name: str) -> None:
    """Kernels, float32 maps, copies and casts neither rise unseen nor fall without being noted."""
    expected = allowed()[name]

    assert row(PASSES[name].traced().counts(), expected["reason"]) == expected, RENEW
