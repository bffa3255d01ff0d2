"""The ranges of images: what survives which way."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.reading.images import to_model_range
from datasets.reading.memory import Memory
from models.ranges import (
    model_to_unit,
    to_uint8,
    uint8_to_model,
    uint8_to_unit,
    unit_to_model,
    unit_to_uint8,
)

LEVELS = torch.arange(256, dtype=torch.uint8)
units = st.floats(0, 1, width=32)


def test_levels_survive_every_way() -> None:
    """Each level comes back from both ranges, and from one by way of the other."""
    assert torch.equal(to_uint8(uint8_to_model(LEVELS)), LEVELS)
    assert torch.equal(unit_to_uint8(uint8_to_unit(LEVELS)), LEVELS)
    assert torch.equal(to_uint8(unit_to_model(uint8_to_unit(LEVELS))), LEVELS)
    assert torch.equal(unit_to_uint8(model_to_unit(uint8_to_model(LEVELS))), LEVELS)


def test_what_lies_beyond_is_clamped() -> None:
    """A decoder overshoots, an 8-bit picture cannot."""
    assert to_uint8(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]
    assert unit_to_uint8(torch.tensor([-0.5, 1.5])).tolist() == [0, 255]


def test_the_ends_are_the_ends() -> None:
    """The least and the greatest level, exactly."""
    assert uint8_to_unit(LEVELS[[0, 255]]).tolist() == [0, 1]
    assert uint8_to_model(LEVELS[[0, 255]]).tolist() == [-1, 1]
    assert unit_to_model(torch.tensor([0.0, 1.0])).tolist() == [-1, 1]


def test_a_level_in_unit_range_is_the_nearest_float32() -> None:
    """As NumPy divides, with which pairs are degraded."""
    expected = np.arange(256, dtype=np.float32) / np.float32(255)

    assert np.array_equal(uint8_to_unit(LEVELS).numpy(), expected)


@settings()
@given(st.lists(units, min_size=1, max_size=64))
def test_unit_to_model_and_back_changes_no_more_than_its_rounding(values: list[float]) -> None:
    """And from then on nothing: the model value comes back to the bit."""
    unit = torch.tensor(values)
    model = unit_to_model(unit)

    assert (model_to_unit(model) - unit).abs().max() <= 2**-25
    assert torch.equal(unit_to_model(model_to_unit(model)), model)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_loader_s_model_range_is_this_one(dtype: type) -> None:
    """NumPy's side, into a batch at hand: levels to rounding, unit values to the bit."""
    levels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    image = levels if dtype is np.uint8 else levels.astype(np.float32) / np.float32(255)
    found = to_model_range([image], ["key"], Memory("reused"))
    expected = torch.from_numpy(levels).permute(2, 0, 1)[None]

    if dtype is np.float32:
        assert torch.equal(found, unit_to_model(uint8_to_unit(expected)))
    assert torch.equal(to_uint8(found), expected)
    torch.testing.assert_close(found, uint8_to_model(expected), rtol=0, atol=1e-6)
