"""Candidate patches of an image: their places, their keys and their pixels."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from datasets.decoding import Pixels
from datasets.latent_format import LONGEST_EXTENSION
from datasets.shards import fits_ustar
from pipelines.curate.config import CropRule

LAST_PATCH = 99_999  # of an image, for which its key leaves room


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in an image, in pixels."""

    x: int
    y: int
    w: int
    h: int


def boxes(width: int, height: int, rule: CropRule) -> list[Box]:
    """List the source boxes of an image's patches; none if a side is shorter than the size.

    "crop" gives windows in row-major order at multiples of the stride, plus a last window flush
    with the border where a remainder is left (the grid of BasicSR's ``extract_subimages``, which
    cut the paper's `HR_sub_c512_s384`). "resize" gives the largest centred square: images are
    never enlarged.
    """
    if min(width, height) < rule.size:
        return []
    if rule.mode == "resize":
        side = min(width, height)
        return [Box((width - side) // 2, (height - side) // 2, side, side)]
    return [
        Box(x, y, rule.size, rule.size)
        for y in _starts(height, rule.size, rule.stride)
        for x in _starts(width, rule.size, rule.stride)
    ]


def _starts(length: int, size: int, stride: int) -> list[int]:
    starts = list(range(0, length - size + 1, stride))
    if starts[-1] + size < length:
        starts.append(length - size)
    return starts


def patch_key(image_key: str, index: int, rule: CropRule) -> str:
    """Name a patch: ``{image}_s{index:03d}``, counted from 1; resized, the image's own key."""
    return image_key if rule.mode == "resize" else f"{image_key}_s{index:03d}"


def is_storable(image_key: str, rule: CropRule) -> bool:
    """Tell whether tars can hold an image's patches, and later their latents, by their names."""
    return fits_ustar(f"{patch_key(image_key, LAST_PATCH, rule)}.{LONGEST_EXTENSION}")


def cut(image: Pixels, box: Box, rule: CropRule) -> Pixels:
    """Cut one patch.

    Args:
        image: RGB uint8 [H, W, 3].
        box: from `boxes`.
        rule: the rule that gave ``box``.

    Returns:
        RGB uint8 [size, size, 3]. "resize" uses Pillow's bicubic (a = -0.5), whose support grows
        with the scale, so it is antialiased.
    """
    window = image[box.y : box.y + box.h, box.x : box.x + box.w]
    if window.shape[:2] == (rule.size, rule.size):
        return window
    resized = Image.fromarray(window).resize((rule.size, rule.size), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def cut_all(image: Pixels, rule: CropRule) -> Iterator[tuple[int, Box, Pixels]]:
    """Yield (index from 1, box, patch) for every patch of an image; crops are views."""
    for index, box in enumerate(boxes(image.shape[1], image.shape[0], rule), start=1):
        yield index, box, cut(image, box, rule)
