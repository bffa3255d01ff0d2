"""The values of a file's pixels at their full depth, with alpha.

`datasets.decoding.decode` makes RGB of 8 bits of every file; here 16 bits stay 16, grey stays one
channel, and alpha is kept. The rules are otherwise the same, and so are the errors.
"""

from io import BytesIO

import cv2
import numpy as np
import numpy.typing as npt
import pi_heif
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from datasets.decoding import (
    BITS,
    ORIENTATION,
    UndecodableImage,
    is_white_zero,
    is_wide_planar,
    planes,
    refuse_unknown_white,
    whole_jpeg,
)
from datasets.png import COLOUR_TYPES, Levels

DEPTH_OF_PNG = 24  # the byte of the bits a channel; the next is the colour type
EXTRA_SAMPLES, ASSOCIATED = 338, (1,)  # a tag of TIFF: colours are multiplied by alpha
WHITE = 65535
STRIP = 1 << 22  # pixels that are copied at a time


def read_levels(image: Image.Image, data: bytes) -> Image.Image | Levels:
    """Decode the pixels of an opened file, turned as it has them.

    Args:
        image: what `datasets.decoding.opened_image` opened.
        data: the whole file.

    Returns:
        uint8 or uint16 [H, W, 1 to 4], an even number of channels with alpha; or a picture of 8
        bits that is L, LA, RGB, RGBA, or of another space: CMYK, YCbCr, Lab.

    Raises:
        UndecodableImage: what `datasets.decoding.decode` raises of it.
    """
    if image.format in ("JPEG", "MPO"):
        return whole_jpeg(image, data)
    refuse_unknown_white(image)
    wide = _wide(image, data)
    return _narrow(image) if wide is None else wide


def _wide(image: Image.Image, data: bytes) -> Levels | None:
    """Decode pixels of more than 8 bits, [H, W, 1 to 4]; return None of others.

    Pillow gives their high bytes alone, but for grey.
    """
    if is_wide_planar(image):
        return planes(image.tell(), data)
    if image.mode.startswith("I;16"):
        return _wide_grey(image)
    if image.format == "HEIF" and image.info.get("bit_depth", 8) > 8:
        return _wide_heif(image, data)
    if isinstance(image, TiffImageFile) and image.mode in ("RGB", "RGBA"):
        return _wide_tiff(image, data) if max(image.tag_v2.get(BITS, (1,))) == 16 else None
    if image.format == "PNG" and data[DEPTH_OF_PNG] == 16:
        wide = _by_opencv(data, 0)
        is_grey = data[DEPTH_OF_PNG + 1] == COLOUR_TYPES[2]  # OpenCV makes colour of it
        return wide[..., 2:] if is_grey else wide
    return None


def _wide_grey(image: Image.Image) -> Levels:
    """Decode 16 bits of grey, and alpha where a level is declared transparent."""
    values = np.array(image, np.uint16)[..., None]
    transparent = image.info.get("transparency")
    if is_white_zero(image):
        values = np.iinfo(np.uint16).max - values
    if transparent is None:
        return values
    opaque = np.where(values == transparent, 0, np.iinfo(np.uint16).max)
    return np.dstack([values, opaque.astype(np.uint16)])


def _wide_heif(image: Image.Image, data: bytes) -> Levels:
    """Decode HEIC of 10 or 12 bits; the first bits are repeated below the last, so that white is.

    They come in the upper bits of 16.
    """
    opened = pi_heif.open_heif(BytesIO(data), convert_hdr_to_8bit=False)
    values = np.asarray(opened[image.tell()])
    filled: Levels = values | values >> image.info["bit_depth"]
    return filled


def _wide_tiff(image: TiffImageFile, data: bytes) -> Levels:
    """Decode 16 bits of RGB whose fourth sample, if any, is what the file says it is."""
    wide = _by_opencv(data, image.tell())
    image.getexif()[ORIENTATION] = 1  # OpenCV has turned it, as Pillow does when it loads a TIFF
    if image.mode == "RGB":  # a fourth sample is said to be of no known meaning
        return wide[..., :3]
    if image.tag_v2.get(EXTRA_SAMPLES) == ASSOCIATED:
        alpha = np.maximum(wide[..., 3:], 1).astype(np.uint32)
        colours = (wide[..., :3] * np.uint32(65535) + alpha // 2) // alpha
        wide[..., :3] = np.minimum(colours, 65535)
    return wide


def _by_opencv(data: bytes, page: int) -> Levels:
    """Decode 16 bits of RGB or RGBA [H, W, 3 or 4].

    Raises:
        UndecodableImage: `truncated`.
    """
    encoded = np.frombuffer(data, np.uint8)
    _, found = cv2.imdecodemulti(encoded, cv2.IMREAD_UNCHANGED, range=(page, page + 1))
    if len(found) != 1 or found[0].dtype != np.uint16 or found[0].ndim != 3:
        raise UndecodableImage("truncated", "16 bits a channel that cannot be read to their end")
    wide: npt.NDArray[np.uint16] = found[0]
    cv2.cvtColor(wide, cv2.COLOR_BGR2RGB if wide.shape[2] == 3 else cv2.COLOR_BGRA2RGBA, dst=wide)
    return wide


def _narrow(image: Image.Image) -> Image.Image:
    """Decode pixels of 8 bits: L, LA, RGB or RGBA; or CMYK, YCbCr or Lab."""
    image.load()
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image.convert("RGB") if image.mode in ("P", "RGBX") else image


def split(opened: Image.Image | Levels) -> tuple[Levels, Levels | None]:
    """Take levels and alpha apart, in strips: of a large picture there is no third copy.

    Args:
        opened: what `read_levels` returns, of no other space.

    Returns:
        Levels [H, W, 1 or 3], writable, and alpha [H, W] or None.
    """
    if isinstance(opened, np.ndarray) and opened.shape[2] in (1, 3):
        return np.require(opened, requirements=["C", "W"]), None
    if isinstance(opened, np.ndarray):
        height, width, channels = opened.shape
        kind = opened.dtype
    else:
        (width, height), channels = opened.size, len(opened.getbands())
        kind = np.dtype(np.uint8)
    colours = channels - (channels in (2, 4))
    levels = np.empty((height, width, colours), kind)
    alpha = np.empty((height, width), kind) if channels != colours else None
    for first in range(0, height, rows := max(1, STRIP // width)):
        last = min(first + rows, height)
        if isinstance(opened, np.ndarray):
            strip = opened[first:last]
        else:
            strip = np.asarray(opened.crop((0, first, width, last))).reshape(-1, width, channels)
        levels[first:last] = strip[..., :colours]
        if alpha is not None:
            alpha[first:last] = strip[..., colours]
    return levels, alpha
