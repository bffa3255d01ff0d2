"""Where patches lie and what they are called."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.latent_format import LONGEST_EXTENSION, extensions
from datasets.shards import fits_ustar
from pipelines.curate.config import CropRule
from pipelines.curate.crop import Box, boxes, cut, cut_all, is_storable, patch_key

CROP = CropRule(mode="crop", size=512, stride=384)
RESIZE = CropRule(mode="resize", size=64)


@pytest.mark.parametrize(
    ("length", "starts"),
    [(512, [0]), (513, [0, 1]), (896, [0, 384]), (1000, [0, 384, 488]), (1280, [0, 384, 768])],
)
def test_windows_step_by_the_stride_and_end_flush_with_the_border(
    length: int, starts: list[int]
) -> None:
    """The grid of HR_sub_c512_s384: multiples of 384, plus a flush window for the rest."""
    found = [box.x for box in boxes(length, 512, CROP)]

    assert starts == found


def test_windows_are_row_major_and_counted_from_one() -> None:
    """Names follow the rows, as extract_subimages gives them: _s001 is the top left."""
    image = np.zeros((896, 896, 3), np.uint8)

    found = [(patch_key("a", index, CROP), box.x, box.y) for index, box, _ in cut_all(image, CROP)]

    expected = [("a_s001", 0, 0), ("a_s002", 384, 0), ("a_s003", 0, 384), ("a_s004", 384, 384)]
    assert expected == found


@given(st.integers(8, 300), st.integers(8, 300), st.integers(8, 64), st.integers(1, 64))
def test_windows_cover_every_pixel_exactly_inside(w: int, h: int, size: int, stride: int) -> None:
    """No pixel of an image that is large enough is left out, and no window leaves the image."""
    rule = CropRule(mode="crop", size=size, stride=min(stride, size))
    found = boxes(w, h, rule)
    seen = np.zeros((h, w), bool)
    for box in found:
        assert box.x + box.w <= w
        assert box.y + box.h <= h
        seen[box.y : box.y + box.h, box.x : box.x + box.w] = True

    assert seen.all() if min(w, h) >= size else not found
    assert len(found) == len(set(found))


def test_an_image_smaller_than_the_size_gives_nothing() -> None:
    """Nothing is ever enlarged."""
    assert boxes(511, 2000, CROP) == []
    assert boxes(63, 64, RESIZE) == []


def test_resizing_takes_the_centre_square() -> None:
    """The longer side loses the same on both ends."""
    assert boxes(100, 80, RESIZE) == [Box(10, 0, 80, 80)]


def test_resizing_averages_what_it_cannot_show() -> None:
    """Bicubic with antialiasing: a one-pixel checkerboard becomes its mean, not an alias."""
    board = np.indices((512, 512)).sum(0) % 2 * 255
    image = np.repeat(board[..., None], 3, 2).astype(np.uint8)

    small = cut(image, Box(0, 0, 512, 512), RESIZE)

    assert small.shape == (64, 64, 3)
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_crops_are_exact_pixels() -> None:
    """A cropped patch is the image's own bytes."""
    image = np.random.default_rng(0).integers(0, 256, (600, 700, 3), dtype=np.uint8)

    for _, box, patch in cut_all(image, CROP):
        assert np.array_equal(patch, image[box.y : box.y + 512, box.x : box.x + 512])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mode": "zoom"}, "zoom"),
        ({"mode": "crop", "size": 4}, "greater than or equal to 8"),
        ({"mode": "crop", "size": 512, "stride": 513}, "stride 513"),
        ({"mode": "crop", "size": 512, "stride": 0}, "stride 0"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(fields: dict[str, object], named: str) -> None:
    """The message names the value."""
    with pytest.raises(ValueError, match=named):
        CropRule(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("mode", "most"), [("crop", 69), ("resize", 76)])
def test_a_key_leaves_room_for_every_member_that_is_ever_made_of_it(
    mode: Literal["crop", "resize"], most: int
) -> None:
    """Patch 99,999 with 10,000 gray draws and their images fits; the limits are the README's."""
    every = ["png", *extensions(range(10_000), lambda _: True, images=True)]
    longest = max(every, key=len)
    rule = CropRule(mode=mode)

    assert len(LONGEST_EXTENSION) == len(longest)
    for folder in ("", "f" * 155 + "/"):
        for letters in ("x" * most, "é" * (most // 2)):
            assert is_storable(folder + letters, rule)
            assert fits_ustar(f"{patch_key(folder + letters, 99_999, rule)}.{longest}")
            assert not is_storable(folder + letters + "é", rule)
