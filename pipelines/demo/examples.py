"""Pictures to try the page with: scikit-image's astronaut, made worse.

It is a photograph by NASA, in the public domain.
"""

import io

import numpy as np
from PIL import Image

from datasets.decoding import Pixels
from models.faces.alignment import crop, square_alignment

CENTRE, RIGHT = (224.7, 106.55), (86.72, 4.31)  # FFHQ's alignment of her face, by 68 landmarks
QUALITY = 40  # of the JPEG


def example_face(size: int) -> bytes:
    """Return her face as FFHQ's are aligned, as PNG of ``size`` x ``size`` pixels."""
    alignment = square_alignment(np.array(CENTRE), np.array(RIGHT), size)
    return _degraded(crop(_astronaut(), alignment))


def example_photograph() -> bytes:
    """Return the whole photograph, as PNG of 512 x 512 pixels."""
    return _degraded(_astronaut())


def _astronaut() -> Pixels:
    from skimage import data

    pixels: Pixels = data.astronaut()
    return pixels


def _degraded(pixels: Pixels) -> bytes:
    """Reduce a picture to a third, keep that as JPEG, and enlarge it again."""
    image = Image.fromarray(pixels)
    small = image.resize((image.width // 3, image.height // 3), Image.Resampling.BICUBIC)
    jpeg, png = io.BytesIO(), io.BytesIO()
    small.save(jpeg, format="JPEG", quality=QUALITY)
    Image.open(jpeg).resize(image.size, Image.Resampling.BICUBIC).save(png, format="PNG")
    return png.getvalue()
