"""Decoding of image files into RGB uint8 pixels, by one rule for every kind; encoding as PNG.

| kind | rule |
|---|---|
| grey | the one channel three times |
| 16 bits a channel | the high byte, which is what Pillow makes of 48-bit RGB |
| 1 bit | 0 or 255 |
| alpha | discarded where the image is opaque throughout; otherwise the image is `transparent` |
| palette | looked up |
| a transparent colour or palette entry | alpha where a pixel has it, nothing where none has |
| CMYK, YCbCr, Lab | Pillow's conversion, where no profile says how |
| an ICC profile | the colours are converted to sRGB (`datasets.profiles`) |
| float, 12-bit, signed or 32-bit integers | `unsupported_mode`: their white is not known |
| EXIF orientation | applied: pixels are upright |
| animated, several pages | the first frame; of a TIFF the first that is no thumbnail and no mask |
| wrong extension | the content decides, never the name |

PNG, JPEG, WebP, TIFF, BMP, HEIC and AVIF are read; anything else is `not_an_image`. What begins as
one of them and cannot be read to its end is `truncated`. The size in the header is judged before
any pixel is decoded, so a decompression bomb costs nothing.
"""

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import pi_heif
import simplejpeg
import tifffile
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import MM, OPEN_INFO, TiffImageFile

from datasets.profiles import conversion, to_srgb
from datasets.unusable import UnusableImage

Pixels = npt.NDArray[np.uint8]
"""RGB uint8 [H, W, 3]."""
Turned = TypeVar("Turned", bound=npt.NDArray[Any])
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "HEIF", "AVIF")
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
BOXES = (b"ftyp",)  # at byte 4 of HEIC and AVIF
MAX_PIXELS = 178_956_970  # where Pillow itself refuses; 0.5 GB as RGB
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error)
LOST_DATA = (
    "premature end",
    "Premature end",
    "bad Huffman code",
    "bad arithmetic",
    "instead of RST",
)
"""Warnings of libjpeg after which a part of the picture is grey or shifted. Others, such as of
extraneous bytes before a marker, come with whole pictures too."""
ORIENTATION = 0x0112
UPRIGHT: dict[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.transpose(pixels), -1),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
"""What turns a picture of an EXIF orientation upright."""
BITS, PHOTOMETRIC, PLANAR, SUBFILE = 258, 262, 284, 254  # tags of TIFF
REDUCED_OR_MASK = 0b101  # bits of SUBFILE
PNG_OPTIONS = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),  # 3.3 times faster than Pillow's default, 5 % more bytes
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),  # no search among five filters
)

pi_heif.register_heif_opener()
# MinIsWhite of 16 bits, which Pillow opens in one byte order alone.
OPEN_INFO.setdefault((MM, 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))
# Text and profile of a photograph may take megabytes; Pillow refuses more than one by default.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 64 << 20


class UndecodableImage(UnusableImage):
    """An image whose bytes give no pixels, or pixels that are of no use."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image."""

    pixels: Pixels
    profile: str | None
    """What its ICC profile calls itself, after `datasets.profiles`; None without one."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode an image by the rules above; see `decode_picture`.

    Returns:
        RGB uint8 [H, W, 3], upright, C-contiguous.
    """
    return decode_picture(data, max_pixels).pixels


def decode_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode an image by the rules above; arguments and errors are those of `opened_image`."""
    with opened_image(data, max_pixels) as image:
        return _picture(image, data)


@contextmanager
def opened_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image at the page that counts, its size judged, nothing decoded yet.

    Args:
        data: a whole encoded file.
        max_pixels: largest width x height that is opened; Pillow refuses more than `MAX_PIXELS`.

    Raises:
        UndecodableImage: with the drop reason, whatever was raised by whichever decoder, here or
            in the body of the ``with``.
    """
    if not data:
        raise UndecodableImage("empty_file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which cost no picture
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if isinstance(image, TiffImageFile):
                    _seek_whole_page(image)
                _judge_size(image, max_pixels)
                yield image
        except UnusableImage:
            raise
        except UnidentifiedImageError as error:
            known = data.startswith(SIGNATURES) or data[4:8] in BOXES
            raise UndecodableImage("truncated" if known else "not_an_image") from error
        except Image.DecompressionBombError as error:
            raise UndecodableImage("too_many_pixels", str(error)) from error
        except MemoryError as error:
            raise UndecodableImage("out_of_memory", f"{len(data)} bytes encoded") from error
        except DAMAGE as error:
            if "MAX_TEXT" in str(error):
                raise UndecodableImage("oversized_metadata", str(error)) from error
            # Only the wording of Pillow's errors tells data that end early from corrupt data.
            raise UndecodableImage("truncated", str(error)) from error
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise UndecodableImage("undecodable", said) from error


def _judge_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height}, at most {max_pixels} pixels"
        raise UndecodableImage("too_many_pixels", size)


def _picture(image: Image.Image, data: bytes) -> Picture:
    profile: bytes | None = image.info.get("icc_profile")
    opened = _opened(image, data)
    turned = orientation(image)  # asked last: Pillow turns a TIFF when it loads it
    if isinstance(opened, np.ndarray):
        name, convert = conversion(profile, "RGB")
        if convert is None:  # of most photographs: no copy is made
            return Picture(upright(opened, turned), name)
        opened = Image.fromarray(opened)
    opened, name = to_srgb(opened, profile)
    return Picture(upright(np.ascontiguousarray(opened.convert("RGB")), turned), name)


def _seek_whole_page(image: TiffImageFile) -> None:
    """Go to the first page that is neither a thumbnail nor a mask of another; else to the first."""
    with suppress(EOFError):
        for page in count():
            image.seek(page)
            if not image.tag_v2.get(SUBFILE, 0) & REDUCED_OR_MASK:
                return
    image.seek(0)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where the metadata are damaged or say nothing."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # whatever is wrong with metadata, the picture may be whole
        return 1
    return value if isinstance(value, int) else 1


def upright(pixels: Turned, orientation: int) -> Turned:
    """Turn pixels [H, W] or [H, W, C] upright; those of orientation 1 are returned as they are."""
    if orientation not in UPRIGHT:
        return pixels
    turned = UPRIGHT[orientation](pixels)
    # OpenCV drops a channel that is alone.
    return turned.reshape(*turned.shape[:2], *pixels.shape[2:])  # type: ignore[return-value]


def _opened(image: Image.Image, data: bytes) -> Image.Image | Pixels:
    """Return the pixels of an opened file as a picture of 8-bit L, RGB, CMYK, YCbCr or Lab.

    The pixels of a JPEG in colour are returned as they are.
    """
    if image.format in ("JPEG", "MPO"):
        return whole_jpeg(image, data)
    refuse_unknown_white(image)
    if is_wide_planar(image):
        return Image.fromarray((planes(image.tell(), data) >> 8).astype(np.uint8))
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        if (values == image.info.get("transparency", -1)).any():
            raise UndecodableImage("transparent", "not opaque throughout")
        high = (values >> 8).astype(np.uint8)
        return Image.fromarray(255 - high if is_white_zero(image) else high)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise UndecodableImage("transparent", "not opaque throughout")
    image.load()
    return image


def whole_jpeg(image: Image.Image, data: bytes) -> Image.Image | Pixels:
    """Decode a JPEG; one of which a part is lost is `truncated`, even with its end mark in place.

    libjpeg fills what is lost with grey and warns. Pillow passes over the warning, simplejpeg
    raises it; both give the same pixels by the same library.

    Returns:
        RGB [H, W, 3] of one in colour; a picture of another mode, or of a JPEG that is odd.
    """
    space = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}[image.mode]
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, space)
    except ValueError as error:
        if any(sign in str(error) for sign in LOST_DATA):
            raise UndecodableImage("truncated", str(error)) from error
        return image  # what libjpeg warns of otherwise, and what simplejpeg does not know
    if image.mode == "CMYK":
        return image  # Pillow knows which programs write ink as light
    return Image.fromarray(pixels[..., 0]) if image.mode == "L" else pixels


def refuse_unknown_white(image: Image.Image) -> None:
    """Refuse float, 12-bit, signed and 32-bit pixels, of which it is not known what is white.

    Raises:
        UndecodableImage: `unsupported_mode`.
    """
    # Pillow hands out 12-bit values as if they were of 16 bits.
    is_12_bit = isinstance(image, TiffImageFile) and image.tag_v2.get(BITS) == (12,)
    if image.mode in ("F", "I") or is_12_bit:
        raise UndecodableImage("unsupported_mode", f"pixels of mode {image.mode}")


def is_white_zero(image: Image.Image) -> bool:
    """Say whether 0 is white, which Pillow leaves to the caller for 16 bits alone."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == 0


def is_wide_planar(image: Image.Image) -> bool:
    """Say whether channels of more than 8 bits follow each other, which Pillow takes for 8 bits."""
    if not isinstance(image, TiffImageFile):
        return False
    bits = image.tag_v2.get(BITS, (1,))
    return image.tag_v2.get(PLANAR) == 2 and len(bits) > 1 and max(bits) > 8


def planes(page: int, data: bytes) -> npt.NDArray[np.uint16]:
    """Decode 16-bit RGB whose channels follow each other, by tifffile.

    Returns:
        uint16 [H, W, 3].
    """
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        found = file.pages[page]
        try:
            values = found.asarray()
        except ValueError as error:
            raise UndecodableImage("unsupported_mode", f"planes of 16 bits: {error}") from error
    if values.dtype != np.uint16 or values.ndim != 3 or len(values) != 3:
        said = f"{values.dtype} planes of shape {values.shape}, only 16-bit RGB is known"
        raise UndecodableImage("unsupported_mode", said)
    return np.ascontiguousarray(values.transpose(1, 2, 0))


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode RGB uint8 [H, W, 3] as PNG without metadata; the same pixels give the same bytes.

    With one filter for all rows OpenCV takes half of Pillow's time at the same level for as many
    bytes, and the file is decoded in six tenths of the time (medians over 50 photographs' crops).
    """
    _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), PNG_OPTIONS)
    return data.tobytes()


def single_threaded() -> None:
    """Limit OpenCV to one thread, because there is one worker for each core."""
    cv2.setNumThreads(1)
