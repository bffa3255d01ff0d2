"""Colour profiles: what an ICC profile says of an image's colours becomes sRGB, and the way back.

Relative colorimetric with black point compensation: white and black go to white and black, colours
inside sRGB stay as they are, and colours outside it are clipped. The perceptual intent would
compress all colours by a table of the maker's own taste, which most profiles of cameras and
displays lack anyway.
"""

from collections.abc import Callable
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

NEARLY_SRGB = 2  # levels; what a copy of sRGB moves by rounding
SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}  # of an image's mode, as profiles name them
PROFILES = 16  # transforms that a process keeps at hand

Convert = Callable[[Image.Image], Image.Image]


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """Convert a picture's colours from its profile to sRGB.

    A profile that moves no colour by more than two levels is a copy of sRGB, and leaves the pixels
    as they are. One that is damaged, or is for another kind of picture, is not applied.

    Args:
        image: of any mode; alpha is ignored.
        profile: the ICC profile; None without one.

    Returns:
        The picture, and what the profile calls itself, with the reason where it is not applied.
    """
    if profile and image.mode not in SPACES:
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    name, convert = conversion(profile, image.mode)
    return (convert(image) if convert else image), name


@lru_cache(maxsize=PROFILES)
def conversion(profile: bytes | None, mode: str) -> tuple[str | None, Convert | None]:
    """Return what a profile calls itself, and what converts a picture of ``mode``.

    Returns:
        None for the name without a profile; None for the conversion where nothing is to be done.
    """
    if not profile:
        return None, None
    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(profile))
        name = _name(opened)
        space = opened.profile.xcolor_space
        if space != SPACES[mode]:
            return f"{name} (not applied: it is for {space.strip()}, the image is {mode})", None
        convert = _transform(opened, mode)
        probe = _colours(mode)
        moved = np.abs(_levels(convert(probe)) - _levels(probe))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, LookupError):
        return f"a damaged profile of {len(profile)} bytes (not applied)", None
    return name, None if mode != "CMYK" and moved.max() <= NEARLY_SRGB else convert


def is_for(profile: bytes, mode: str) -> bool:
    """Say whether a profile is whole and for pictures of ``mode``."""
    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(profile))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return False
    return opened.profile.xcolor_space == SPACES[mode]


@lru_cache(maxsize=PROFILES)
def reversion(profile: bytes | None, mode: str) -> Convert | None:
    """Return what converts an sRGB picture of ``mode`` back into the profile's own colours.

    Args:
        profile: the ICC profile; None without one.
        mode: "L" or "RGB", of the picture before and after.

    Returns:
        None where `conversion` leaves the colours as they are.

    Raises:
        ValueError: a profile with no way back, such as that of a scanner.
    """
    name, convert = conversion(profile, mode)
    if profile is None or convert is None:
        return None
    if mode == "L":
        nearest = _nearest(_levels(convert(_colours("L")))[0, :, 1])
        return lambda image: image.point(nearest)
    try:
        transform = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"),
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            *("RGB", mode),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except ImageCms.PyCMSError as error:
        raise ValueError(f"the profile {name} has no way back from sRGB") from error
    return lambda image: _applied(image, transform)


def _nearest(shown: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> list[int]:
    """Return, of 256 greys, which of those of a profile is shown most like each.

    Where several are, the one nearer to black or to white, so that both come back.
    """
    apart = np.abs(shown[None] - np.arange(256)[:, None])
    first, last = apart.argmin(axis=1), 255 - apart[:, ::-1].argmin(axis=1)
    return [int(level) for level in np.where(np.arange(256) < 128, first, last)]


def _name(profile: ImageCms.ImageCmsProfile) -> str:
    said = " ".join((profile.profile.profile_description or "").split())
    return "".join(c if c.isprintable() else "_" for c in said) or "a profile without a name"


def _transform(profile: ImageCms.ImageCmsProfile, mode: str) -> Convert:
    """Return the conversion; of grey it gives grey.

    LittleCMS approximates by a grid of colours, which is up to ten levels off for a steep curve of
    grey; the 256 greys are few enough to be computed exactly.
    """
    exactly = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    transform = ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION | exactly,
    )
    if mode != "L":
        return lambda image: _applied(image, transform)
    ramp = _applied(_colours("L"), transform)
    levels = np.asarray(ramp)[0, :, 1].tolist()  # the green of a grey that has no colour
    return lambda image: image.point(levels)


def _applied(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # only where it converts in place
    return converted


def _colours(mode: str) -> Image.Image:
    """Return a picture of colours from all over the space: all greys, or a cube of 17 levels."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    axis = np.linspace(0, 255, 17).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(1, -1, 3)
    return Image.fromarray(cube) if mode == "RGB" else Image.fromarray(cube).convert("CMYK")


def _levels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    return np.asarray(image.convert("RGB")).astype(np.int16)
