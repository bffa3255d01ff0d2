"""Latents that hold something else than numbers are found, by every bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from datasets.reading.finite import are_finite, refuse_not_finite
from datasets.reading.ranges import UnreadableRange


@given(bits=arrays.arrays(np.uint16, 5))
def test_every_pattern_of_16_bits_is_told_as_numpy_tells_it(bits: "np.ndarray[Any, Any]") -> None:
    """Of float16, and of float32 whose lower half is zero."""
    halves = bits.view(np.float16)
    singles = (bits.astype(np.uint32) << 16).view(np.float32)

    assert are_finite(halves) == np.isfinite(halves).all()
    assert are_finite(singles) == np.isfinite(singles).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_one_value_of_a_pair_is_enough(dtype: type) -> None:
    """NaN of either sign and both infinities are found anywhere; the largest numbers pass."""
    most = np.finfo(dtype).max
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        for place in (0, 17, -1):
            pair = np.full((2, 3, 4), most, dtype)
            pair[1, 1:] = -most
            refuse_not_finite(pair, "whole")
            pair.reshape(-1)[place] = value
            with pytest.raises(UnreadableRange, match=r"one\.tar: k1 holds .* not finite"):
                refuse_not_finite(pair, "one.tar: k1")


def test_every_code_of_8_bits_is_a_number() -> None:
    """What is stored in bytes is scaled afterwards."""
    assert are_finite(np.arange(256, dtype=np.uint8))
