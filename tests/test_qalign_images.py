"""What the network sees equals CLIP's preprocessing of the padded RGB image, whatever came in."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models.qalign.images import (
    MEAN,
    PADDING,
    STD,
    check_preprocessing,
    pad_to_square,
    prepare,
    to_clip_range,
    to_rgb,
)

PUBLISHED = {
    **{"crop_size": 448, "do_center_crop": True, "do_normalize": True, "do_resize": True},
    **{"image_mean": list(MEAN), "image_std": list(STD), "resample": 3, "size": 448},
}


def noise(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    """Random pixels [H, W, channels]."""
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def seen(image: NDArray[np.uint8] | Image.Image, size: int = 448) -> NDArray[np.float32]:
    """The network's input for one image, [3, size, size]."""
    return to_clip_range(torch.tensor(prepare(image, size))[None])[0].numpy()


@pytest.mark.parametrize("sides", [(300, 517), (517, 300), (448, 448), (31, 32), (1, 1)])
def test_equals_the_clip_image_processor(sides: tuple[int, int]) -> None:
    """Transformers' PIL processor, on the padded image, gives the very same numbers."""
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size=448, crop_size=448, resample=3)
    padded = pad_to_square(Image.fromarray(noise(*sides)))
    expected = processor(padded, return_tensors="np")["pixel_values"][0]

    np.testing.assert_array_equal(seen(noise(*sides)), expected)


def test_every_byte_is_normalised_as_the_original_does() -> None:
    """All 256 values in three channels: float64 scaling, float32 normalising, no difference."""
    bytes_ = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    scaled = (bytes_.astype(np.float64) * (1 / 255)).astype(np.float32)
    expected = (scaled - np.float32(MEAN)) / np.float32(STD)

    got = to_clip_range(torch.tensor(bytes_)[None])[0].permute(1, 2, 0)
    np.testing.assert_array_equal(got.numpy(), expected)


@settings(max_examples=40)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_padding_centres_and_floors(height: int, width: int) -> None:
    """The image stands whole in the square, the odd pixel of padding right or below it."""
    image = noise(height, width)
    square = np.asarray(pad_to_square(Image.fromarray(image)))
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    frame = np.ones((side, side), dtype=bool)
    frame[top : top + height, left : left + width] = False

    assert square.shape == (side, side, 3)
    np.testing.assert_array_equal(square[top : top + height, left : left + width], image)
    assert (square[frame] == PADDING).all()


def test_padding_colour_is_the_mean() -> None:
    """The frame is CLIP's mean colour, truncated to bytes."""
    assert tuple(int(255 * mean) for mean in MEAN) == PADDING == (122, 116, 104)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"]
)
@pytest.mark.parametrize("sides", [(20, 33), (1, 1)])
def test_modes_are_seen_as_their_rgb_conversion(mode: str, sides: tuple[int, int]) -> None:
    """Any 8-bit PIL mode, 1 x 1 too, is converted first and padded after."""
    source = Image.fromarray(noise(*sides))
    way = [mode[0], mode] if mode in {"LA", "PA"} else [mode]  # Pillow knows no direct way to these
    image = functools.reduce(Image.Image.convert, way, source)
    assert image.mode == mode

    np.testing.assert_array_equal(seen(image, 56), seen(np.asarray(image.convert("RGB")), 56))


def test_alpha_is_dropped() -> None:
    """A transparent image is seen as its colours."""
    opaque = noise(20, 33)
    transparent = np.dstack([opaque, noise(20, 33, 1)])

    np.testing.assert_array_equal(seen(Image.fromarray(transparent, "RGBA"), 56), seen(opaque, 56))


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_grey_is_scaled_not_clipped(order: str) -> None:
    """The high byte is seen, in either byte order."""
    values = np.array([[0, 256, 128 * 256 + 255, 65535]], dtype=f"{order}u2")
    image = Image.frombytes("I;16" if order == "<" else "I;16B", (4, 1), values.tobytes())

    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]: expected uint8 \[H, W, 3\]"),
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]: expected uint8"),
        (np.zeros((3, 4, 4), np.uint8), r"uint8 \[3, 4, 4\]: expected"),
        (np.zeros((0, 4, 3), np.uint8), "0 pixels: nothing to score"),
        (Image.new("F", (4, 4)), "mode F: range unknown"),
        (Image.new("I", (4, 4)), "mode I: range unknown"),
    ],
)
def test_what_is_no_image_is_refused(image: NDArray[np.uint8] | Image.Image, message: str) -> None:
    """A wrong array or an unbounded mode is named instead of scored."""
    with pytest.raises(ValueError, match=message):
        prepare(image, 56)


def test_published_preprocessing_is_accepted(tmp_path: Path) -> None:
    """The values of the published preprocessor_config.json are the ones built in."""
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(PUBLISHED))
    check_preprocessing(path, 448)
    path.write_text(json.dumps(PUBLISHED | {"size": {"shortest_edge": 448}}))
    check_preprocessing(path, 448)


@pytest.mark.parametrize("change", [{"size": 336}, {"resample": 2}, {"image_mean": [0.5] * 3}])
def test_another_preprocessing_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """A checkpoint made for other pixels is not scored with these."""
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(PUBLISHED | change))

    with pytest.raises(ValueError, match=f"{next(iter(change))}=.*expected"):
        check_preprocessing(path, 448)
