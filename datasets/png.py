"""PNG with everything a photograph has: 8 or 16 bits, alpha, and chunks beside the pixels.

Neither Pillow nor OpenCV writes them together. Rows are filtered and compressed a strip at a time,
so that beside the picture and its file there is never a third copy. The layout is that of the PNG
specification (W3C, third edition).
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import PngImagePlugin

Levels = npt.NDArray[np.unsignedinteger[Any]]
"""Values of pixels as a file has them, uint8 or uint16."""
Chunk = tuple[bytes, bytes]
"""Four letters, and the data."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels: grey, grey with alpha, RGB, RGBA
UP = 2  # the filter of every row: less the row above
LEVEL = 1  # of zlib; with this filter higher ones take several times as long for few bytes less
STRIP = 4 << 20  # bytes of rows that are compressed at a time
METRE = 0.0254  # of an inch


def png(levels: Levels, alpha: Levels | None = None, chunks: Iterable[Chunk] = ()) -> bytes:
    """Encode pixels as PNG; the same pixels and chunks give the same bytes.

    Args:
        levels: uint8 or uint16 [H, W, 1 or 3].
        alpha: [H, W] of the same type; None without.
        chunks: what is to stand before the pixels, in this order.

    Raises:
        ValueError: pixels of another type or shape.
    """
    file = BytesIO()  # it grows in place, where joining would hold all of the file twice
    file.writelines(_parts(levels, alpha, chunks))
    return file.getvalue()


def _parts(levels: Levels, alpha: Levels | None, chunks: Iterable[Chunk]) -> Iterator[bytes]:
    if levels.dtype not in (np.uint8, np.uint16) or levels.ndim != 3 or 0 in levels.shape:
        raise ValueError(
            f"{levels.dtype} {list(levels.shape)}: a PNG holds uint8 or uint16 [H, W, C], not empty"
        )
    height, width, channels = levels.shape
    kind = COLOUR_TYPES[channels + (alpha is not None)]
    yield SIGNATURE
    yield _framed(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * levels.itemsize, kind, 0, 0, 0)
    )
    for name, data in chunks:
        yield _framed(name, data)
    compressor = zlib.compressobj(LEVEL)
    for rows in _filtered(levels, alpha):
        yield _framed(b"IDAT", compressor.compress(rows.data))
    yield _framed(b"IDAT", compressor.flush())
    yield _framed(b"IEND", b"")


def _filtered(levels: Levels, alpha: Levels | None) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the bytes of the rows in strips, each row after the number of its filter."""
    height, width, channels = levels.shape
    row = width * (channels + (alpha is not None)) * levels.itemsize
    above = np.zeros((1, row), np.uint8)
    rows = max(1, STRIP // row)
    for first in range(0, height, rows):
        strip = levels[first : first + rows]
        if alpha is not None:
            strip = np.dstack([strip, alpha[first : first + rows]])
        values = strip.astype(strip.dtype.newbyteorder(">"), order="C")
        plain = values.view(np.uint8).reshape(len(strip), row)
        filtered = np.empty((len(strip), row + 1), np.uint8)
        filtered[:, 0] = UP
        filtered[:, 1:] = plain - np.vstack([above, plain[:-1]])
        above = plain[-1:]
        yield filtered


def _framed(name: bytes, data: bytes) -> bytes:
    checked = zlib.crc32(data, zlib.crc32(name))
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checked)


def profile_chunk(profile: bytes) -> Chunk:
    """Return the chunk of an ICC profile."""
    return b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile)


def exif_chunk(exif: bytes) -> Chunk:
    """Return the chunk of EXIF metadata, as they begin in TIFF or in JPEG."""
    return b"eXIf", exif.removeprefix(b"Exif\0\0")


def resolution_chunk(dpi: tuple[float, float]) -> Chunk:
    """Return the chunk of a resolution in dots per inch, across and down."""
    return b"pHYs", struct.pack(">IIB", *(round(dots / METRE) for dots in dpi), 1)


def offset_chunk(x: int, y: int) -> Chunk:
    """Return the chunk that says where a layer's first pixel lies, in pixels; GIMP follows it."""
    return b"oFFs", struct.pack(">iiB", x, y, 0)


def text_chunks(text: Mapping[str, str]) -> list[Chunk]:
    """Return a chunk for each keyword and its text, Latin-1 or else UTF-8.

    Raises:
        ValueError: a keyword that is not of 1 to 79 characters of Latin-1.
    """
    info = PngImagePlugin.PngInfo()
    for keyword, value in text.items():
        if not is_keyword(keyword):
            raise ValueError(
                f"the keyword {keyword!r}: PNG allows 1 to 79 printable characters of Latin-1"
            )
        info.add_text(keyword, value)
    return [(name, data) for name, data, *_ in info.chunks]


def is_keyword(text: str) -> bool:
    """Say whether PNG allows a text as a keyword: 1 to 79 printable characters of Latin-1."""
    return 1 <= len(text) <= 79 and text.isprintable() and max(text) <= "\xff"


def xmp_chunk(xmp: bytes) -> Chunk:
    """Return the chunk of XMP metadata."""
    return b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp


def chunks_of(data: bytes, names: Iterable[bytes]) -> list[Chunk]:
    """Return those chunks of a PNG before its pixels that have one of ``names``, as they are."""
    wanted, found, place = set(names), [], len(SIGNATURE)
    while data[place + 4 : place + 8] not in (b"IDAT", b"IEND", b""):
        (length,) = struct.unpack_from(">I", data, place)
        name = data[place + 4 : place + 8]
        if name in wanted:
            found.append((name, data[place + 8 : place + 8 + length]))
        place += 12 + length
    return found
