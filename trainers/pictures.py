"""Grids of pictures to look at: a row per image, a named column per kind, a number on each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from models.metrics import psnr

if TYPE_CHECKING:
    from PIL.Image import Image

MARGIN, LINE = 4, 16


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
