"""Pictures to try the page with: scikit-image's astronaut, made worse."""

import io

from PIL import Image

from datasets.decoding import Pixels
from pipelines.restore.example import face, photograph

QUALITY = 40  # of the JPEG


def example_face(size: int) -> bytes:
    """Return her face as FFHQ's are aligned, as PNG of ``size`` x ``size`` pixels."""
    return _degraded(face(size))


def example_photograph() -> bytes:
    """Return the whole photograph, as PNG of 512 x 512 pixels."""
    return _degraded(photograph())


def _degraded(pixels: Pixels) -> bytes:
    """Reduce a picture to a third, keep that as JPEG, and enlarge it again."""
    image = Image.fromarray(pixels)
    small = image.resize((image.width // 3, image.height // 3), Image.Resampling.BICUBIC)
    jpeg, png = io.BytesIO(), io.BytesIO()
    small.save(jpeg, format="JPEG", quality=QUALITY)
    Image.open(jpeg).resize(image.size, Image.Resampling.BICUBIC).save(png, format="PNG")
    return png.getvalue()
