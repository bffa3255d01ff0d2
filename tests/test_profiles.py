"""Colours of any profile become sRGB; sRGB itself is left alone, bit for bit."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.decoding import decode, decode_picture
from tests.support.icc_profiles import (
    ADOBE_BLUE,
    ADOBE_GREEN,
    ADOBE_RED,
    SRGB,
    adobe_rgb,
    described,
    grey_gamma,
    icc,
)

RNG = np.random.default_rng(11)
COLOUR = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
TO_SRGB = np.array(  # XYZ at D50 to linear sRGB, by Bradford adaptation
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)


def srgb_curve(linear: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Encode linear light as sRGB, in levels (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return 255 * curve


def encoded(pixels: np.ndarray[Any, Any], kind: str, profile: bytes, **options: Any) -> bytes:
    """Encode an image with a profile."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, icc_profile=profile, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_adobe_rgb_becomes_srgb(kind: str) -> None:
    """The values are those of the profile's equation, to a level and a half."""
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = decode_picture(encoded(COLOUR, kind, adobe_rgb(), **options))
    primaries = np.array([ADOBE_RED, ADOBE_GREEN, ADOBE_BLUE])
    expected = srgb_curve((COLOUR / 255.0) ** (563 / 256) @ primaries @ TO_SRGB.T)

    assert picture.profile == "Adobe RGB (1998)"
    assert np.abs(picture.pixels - expected).max() < 1.5
    assert np.abs(picture.pixels.astype(int) - COLOUR).max() > 40


def test_a_jpeg_with_a_profile_is_converted_too() -> None:
    """Its pixels come from another decoder."""
    data = encoded(COLOUR, "JPEG", adobe_rgb(), quality=95)
    with Image.open(io.BytesIO(data)) as image:
        plain = np.asarray(image)

    assert np.array_equal(decode(data), decode(encoded(plain, "PNG", adobe_rgb())))


@pytest.mark.parametrize("pixels", [COLOUR, GREY], ids=["colour", "grey"])
def test_a_copy_of_srgb_leaves_the_pixels_as_they_are(pixels: np.ndarray[Any, Any]) -> None:
    """Not a level moves, of grey not either; the profile's own name is recorded."""
    profile = SRGB if pixels.ndim == 3 else adobe_rgb()
    picture = decode_picture(encoded(pixels, "PNG", profile))

    assert np.array_equal(picture.pixels, decode(encoded(pixels, "PNG", b"")))
    assert picture.profile is not None
    assert ("sRGB" in picture.profile) == (pixels.ndim == 3)


def test_grey_with_a_profile_stays_grey() -> None:
    """A gamma of 1 is far from sRGB's curve: the values are its equation's, in all channels."""
    picture = decode_picture(encoded(GREY, "PNG", grey_gamma(1.0)))

    assert picture.profile == "Gray"
    assert (picture.pixels == picture.pixels[..., :1]).all()
    assert np.abs(picture.pixels[..., 0] - srgb_curve(GREY / 255.0)).max() < 1.5


def test_the_profile_counts_in_the_picture_as_it_is_turned() -> None:
    """Profile and orientation are applied one after the other."""
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = decode(encoded(COLOUR, "PNG", adobe_rgb()))
    turned = decode(encoded(COLOUR, "PNG", adobe_rgb(), exif=exif))

    assert np.array_equal(turned, np.rot90(plain, -1))


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (b"no profile", "a damaged profile of 10 bytes (not applied)"),
        (adobe_rgb()[:200], "a damaged profile of 200 bytes (not applied)"),
        (grey_gamma(1.0), "Gray (not applied: it is for GRAY, the image is RGB)"),
        (
            icc(b"RGB ", {b"desc": described("Empty")}),
            "a damaged profile of 251 bytes (not applied)",
        ),
    ],
    ids=["rubbish", "cut", "of-grey", "without-curves"],
)
def test_a_profile_that_cannot_be_applied_is_recorded(profile: bytes, said: str) -> None:
    """The picture is kept as if it were sRGB."""
    picture = decode_picture(encoded(COLOUR, "PNG", profile))

    assert picture.profile is not None
    assert picture.profile.split(" of ")[0] == said.split(" of ", maxsplit=1)[0]
    assert np.array_equal(picture.pixels, COLOUR)


def cmyk_profile() -> bytes:
    """Write a profile of CMYK in which ink K alone counts: L* = 100 (1 - k), and no colour."""
    inks, grid, outputs = 4, 2, 3
    identity = struct.pack(">9i", *(65536 if n % 4 == 0 else 0 for n in range(9)))
    head = b"mft1" + bytes(4) + struct.pack(">BBBx", inks, outputs, grid) + identity
    ramp = bytes(range(256))
    cells = b"".join(bytes([255 * (1 - n % 2), 128, 128]) for n in range(grid**inks))
    table = head + ramp * inks + cells + ramp * outputs
    lab = icc(b"CMYK", {b"desc": described("Ink"), b"A2B0": table})
    return lab[:20] + b"Lab " + lab[24:]


def test_cmyk_goes_by_its_profile() -> None:
    """White is white, black is black, and a profile that knows no colour gives grey."""
    ink = np.zeros((1, 3, 4), np.uint8)
    ink[0, 1, 3], ink[0, 2] = 255, (200, 100, 50, 128)
    buffer = io.BytesIO()
    image = Image.frombytes("CMYK", (3, 1), ink.tobytes())
    image.save(buffer, "TIFF", icc_profile=cmyk_profile())
    picture = decode_picture(buffer.getvalue())

    assert picture.profile == "Ink"
    white, black, grey = picture.pixels[0].astype(int)
    assert white.min() >= 254
    assert black.max() <= 1
    assert np.ptp(grey) <= 1
    assert 110 < grey[0] < 125  # L* = 50
