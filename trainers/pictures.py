"""Grids of pictures to look at: a row per image, a named column per kind, a number on each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from infra.distributed import rank
from models.metrics import psnr

if TYPE_CHECKING:
    from PIL.Image import Image

MARGIN, LINE = 4, 16


class Gallery:
    """The first pictures that rank 0 meets, for people to look at; the others keep none.

    Args:
        size: pictures of each kind to keep.
        columns: titles, from left to right, of those kinds that come; "hq" is what the others are
            compared with.
    """

    def __init__(self, size: int, columns: Sequence[str]) -> None:
        self.size = 0 if rank() else size
        self._columns: dict[str, list[Tensor]] = {title: [] for title in columns}

    @property
    def is_full(self) -> bool:
        """Whether nothing more is kept."""
        return sum(map(len, self._columns["hq"])) >= self.size

    def add(self, pictures: Mapping[str, Tensor]) -> None:
        """Keep uint8 pictures [B, 3, H, W], each by its title, if there is room."""
        if not self.is_full:
            for title, some in pictures.items():
                self._columns[title].append(some.cpu())

    def grid(self) -> "Image | None":
        """Lay them out, if there are any."""
        kept = {title: torch.cat(some) for title, some in self._columns.items() if some}
        shown = {title: some[: self.size] for title, some in kept.items()}
        return grid(shown, "hq") if shown else None


def grid(columns: Mapping[str, Tensor], reference: str) -> "Image":
    """Lay out uint8 images [B, 3, H, W], one column each, in their own size.

    Args:
        columns: by title.
        reference: the column that the others are compared with; each has its PSNR below it.
    """
    from PIL import Image, ImageDraw

    rows, _, height, width = columns[reference].shape
    cell_height, cell_width = height + LINE + MARGIN, width + MARGIN
    size = (len(columns) * cell_width + MARGIN, rows * cell_height + LINE + MARGIN)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for number, (title, images) in enumerate(columns.items()):
        left = MARGIN + number * cell_width
        draw.text((left, 2), title, fill="black")
        values = psnr(images, columns[reference]).tolist()
        for row, (image, value) in enumerate(zip(images.cpu(), values, strict=True)):
            top = LINE + MARGIN + row * cell_height
            pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
            canvas.paste(Image.fromarray(pixels), (left, top))
            if title != reference:
                draw.text((left, top + height + 1), f"{value:.2f} dB", fill="black")
    return canvas
