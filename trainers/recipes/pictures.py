"""Grids of pictures to look at: a block per image, a named picture per kind, a number on each."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from infra.distributed import rank
from models.metrics.fidelity import psnr

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 1536  # pixels up to which small pictures are enlarged: MLflow's pages show them as they are
MARGIN = 8


class Gallery:
    """Some of the pictures that rank 0 meets, for people to look at; the others keep none.

    Args:
        keys: of the samples whose pictures to keep.
        columns: titles, from left to right, of those kinds that come; "hq" is what the others are
            compared with.
    """

    def __init__(self, keys: Collection[str], columns: Sequence[str]) -> None:
        self._wanted = frozenset() if rank() else frozenset(keys)
        self._columns: dict[str, list[Tensor]] = {title: [] for title in columns}
        self._keys: list[str] = []

    def wants(self, keys: Sequence[str]) -> bool:
        """Tell whether the picture of any of these samples is kept."""
        return not self._wanted.isdisjoint(keys)

    def add(self, pictures: Mapping[str, Tensor], keys: Sequence[str]) -> None:
        """Keep those of the samples wanted, of uint8 pictures [B, 3, H, W] by title."""
        rows = [row for row, key in enumerate(keys) if key in self._wanted]
        if rows:
            self._keys += [keys[row] for row in rows]
            for title, some in pictures.items():
                self._columns[title].append(some[rows].cpu())

    def grid(self) -> "Image | None":
        """Lay them out, if there are any."""
        kept = {title: torch.cat(some) for title, some in self._columns.items() if some}
        return grid(kept, "hq", self._keys) if kept else None


def grid(columns: Mapping[str, Tensor], reference: str, keys: Sequence[str]) -> "Image":
    """Lay out uint8 images [B, 3, H, W], all of an image side by side, about as wide as high.

    Args:
        columns: by title.
        reference: the column that the others are compared with; each has its PSNR below it.
        keys: of the images; the end of each is below the reference.
    """
    from PIL import Image, ImageDraw, ImageFont

    count, _, height, width = columns[reference].shape
    across = _blocks_across(count, len(columns) * width, height)
    scale = max(1, SIDE // max(across * len(columns) * width, -(-count // across) * height))
    height, width = scale * height, scale * width
    letters = max(14, width // 14)
    font, line = ImageFont.load_default(size=letters), letters * 3 // 2
    block = len(columns) * (width + MARGIN) + MARGIN
    size = (across * block, -(-count // across) * (height + line + MARGIN) + line + MARGIN)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, (title, images) in enumerate(columns.items()):
        values = psnr(images, columns[reference]).tolist()
        for number, (image, value) in enumerate(zip(images.cpu(), values, strict=True)):
            left = MARGIN + number % across * block + column * (width + MARGIN)
            top = MARGIN + line + number // across * (height + line + MARGIN)
            if number < across:
                draw.text((left, MARGIN // 2), title, fill="black", font=font)
            pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
            picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(picture, (left, top))
            text = keys[number] if title == reference else f"{value:.2f} dB"
            while draw.textlength(text, font=font) > width:
                text = text[1:]
            draw.text((left, top + height), text, fill="black", font=font)
    return canvas


def _blocks_across(count: int, width: int, height: int) -> int:
    """Return how many blocks of this size, side by side, make ``count`` of them a square."""
    return min(
        range(1, count + 1),
        key=lambda across: abs(math.log(across * width / (-(-count // across) * height))),
    )
