"""Encoded bytes -> RGB uint8 pixels, by one rule for every kind of image; and back to PNG.

| kind | rule |
|---|---|
| grey | the one channel three times |
| 16 bits a channel | the high byte, which is what Pillow makes of 48-bit RGB |
| 1 bit | 0 or 255 |
| alpha | discarded where the image is opaque throughout; otherwise the image is `transparent` |
| palette | looked up; a transparent entry that is used counts as alpha |
| CMYK, YCbCr, Lab, HSV | Pillow's conversion; profiles (ICC) are not applied |
| float, 32-bit integers beyond 16 bits | `unsupported_mode` |
| EXIF orientation | applied: pixels are upright |
| animated, several pages | the first frame |
| wrong extension | the content decides, never the name |

PNG, JPEG, WebP, TIFF and BMP are read; anything else is `not_an_image`. The size in the header is
judged before any pixel is decoded, so a decompression bomb costs nothing.
"""

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

Image.MAX_IMAGE_PIXELS = None  # Pillow's own bomb check: `decode` judges every size itself

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
MAX_PIXELS = 400_000_000
PNG_LEVEL = 1  # 3.3 times faster than Pillow's default for 5 % more bytes


class UndecodableImage(ValueError):  # noqa: N818  (an outcome that is counted, not a fault of ours)
    """An image that cannot be used; ``reason`` is its drop reason, one word for a table.

    Attributes:
        reason: `empty_file`, `not_an_image`, `truncated`, `too_many_pixels`, `unsupported_mode` or
            `transparent`.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode an image by the rules above.

    Args:
        data: a whole encoded file.
        max_pixels: largest width x height that is decoded.

    Returns:
        RGB uint8 [H, W, 3], upright, C-contiguous.

    Raises:
        UndecodableImage: with the drop reason.
    """
    if not data:
        raise UndecodableImage("empty_file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, none of which is used
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    size = f"{image.width} x {image.height}, at most {max_pixels} pixels"
                    raise UndecodableImage("too_many_pixels", size)
                return np.ascontiguousarray(_rgb(image))
        except UndecodableImage:
            raise
        except UnidentifiedImageError as error:
            raise UndecodableImage("not_an_image") from error
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            # Pillow has one exception for cut-off and for corrupt data; to a data set both are one.
            raise UndecodableImage("truncated", str(error)) from error


def _rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode == "F":
        raise UndecodableImage("unsupported_mode", "32-bit float pixels have no fixed range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        upright = ImageOps.exif_transpose(image)
        values = np.asarray(upright)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise UndecodableImage("unsupported_mode", "integers beyond 16 bits")
        grey = (values.astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3] != (255, 255):
            raise UndecodableImage("transparent", "not opaque throughout")
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode RGB uint8 [H, W, 3] as PNG without metadata; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()
