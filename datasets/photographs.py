"""Photographs that are changed in places and written again with everything else they had.

What is read is what `datasets.decoding` reads, with the same errors; but where it makes RGB of 8
bits of every file, a photograph keeps its own values:

| kind | kept as |
|---|---|
| 8 bits, 16 bits | 8 bits, 16 bits; HEIC of 10 and 12 bits becomes 16, AVIF becomes 8 |
| grey, 1 bit | one channel; its restored faces are made grey |
| palette | RGB |
| CMYK, YCbCr, Lab | RGB; CMYK with its profile applied, which no PNG can hold |
| alpha, a transparent colour or palette entry | alpha, which nothing changes |
| an ICC profile | as it is; colours go to sRGB for a restorer, and back |
| a profile that is damaged, or for another kind | dropped |
| a profile with no way back from sRGB (scanners) | sRGB of 8 bits, without it |
| EXIF | every tag, as Pillow writes it; the pixels are turned upright, the thumbnail goes |
| XMP, text, comment, resolution, gamma | as they are |
| animated, several pages | the first frame, as `datasets.decoding` chooses it |

`Photograph.notes` says in a sentence each what could not be kept.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from datasets.decoding import (
    DAMAGE,
    MAX_PIXELS,
    ORIENTATION,
    Pixels,
    opened_image,
    orientation,
    upright,
)
from datasets.levels import read_levels, split
from datasets.png import (
    Chunk,
    Levels,
    chunks_of,
    exif_chunk,
    is_keyword,
    png,
    profile_chunk,
    resolution_chunk,
    text_chunks,
    xmp_chunk,
)
from datasets.profiles import conversion, is_for, reversion, to_srgb

SHOWN_AS = (b"cICP", b"gAMA", b"cHRM", b"sRGB")  # chunks that say how a PNG's levels are shown
OF_PHOTOGRAPHS = (
    *(ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model),
    *(ExifTags.Base.Software, ExifTags.Base.DateTime, ExifTags.Base.Artist),
    *(ExifTags.Base.HostComputer, ExifTags.Base.Copyright, ExifTags.Base.Rating),
)
"""Tags of a TIFF that tell of the photograph, not of how the file is laid out."""
XMP_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:>|=["']))[2-8]""")
METADATA_AS_TEXT = ("XML:com.adobe.xmp", "Raw profile type ")  # kept, or stale, in other chunks
SIDES = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)
TRANSPOSED = (5, 6, 7, 8)  # orientations whose rows are columns
NO_EXIF = "Its EXIF metadata hold nothing that can be read, and were dropped."
MOST_DOTS = 50_000_000  # per inch; PNG counts the dots of a metre in 31 bits
WIDE = 257  # 65535 / 255: what a level of 8 bits is in 16
STRIP = 1 << 22  # pixels that are converted at a time


@dataclass(frozen=True, slots=True, eq=False)
class Photograph:
    """A photograph's own pixels, and what else its file says."""

    levels: Levels
    """[H, W, 1 or 3] uint8 or uint16, upright; the one thing that is changed, in place."""
    alpha: Levels | None = None
    """[H, W] of the same type; None without."""
    profile: bytes | None = None
    """ICC, of these levels; None: sRGB."""
    exif: bytes | None = None
    """Of orientation 1, without a thumbnail."""
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    """Dots per inch, across and down."""
    text: Mapping[str, str] = field(default_factory=dict)
    shown_as: tuple[Chunk, ...] = ()
    """Chunks of a PNG without a profile that say how its levels are shown."""
    notes: tuple[str, ...] = ()
    """What could not be kept, a sentence each."""

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.levels.shape[1])

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.levels.shape[0])

    def srgb(self) -> Pixels:
        """Return RGB uint8 [H, W, 3], what `datasets.decoding.decode` gives of the opaque file.

        Alpha is not applied: the colours are those that the file has under it. These are the
        photograph's own levels, not a copy, where they are RGB of 8 bits in sRGB.
        """
        _, convert = conversion(self.profile, self.mode)
        if convert is None and self.mode == "RGB" and self.levels.dtype == np.uint8:
            return self.levels
        pixels = np.empty((self.height, self.width, 3), np.uint8)
        rows = max(1, STRIP // self.width)
        for first in range(0, self.height, rows):
            strip = self.levels[first : first + rows]
            image = _image(strip if strip.dtype == np.uint8 else (strip >> 8).astype(np.uint8))
            shown = convert(image) if convert else image
            pixels[first : first + rows] = np.asarray(shown.convert("RGB"))
        return pixels

    def from_srgb(self, pixels: Pixels) -> Levels:
        """Return RGB uint8 [h, w, 3] in sRGB as levels of this photograph: [h, w, 1 or 3].

        Grey is the luma of Rec. 601, which gives back a grey of three equal channels. Levels of 16
        bits are 257 times those of 8. What `srgb` does without a profile is undone exactly.
        """
        revert = reversion(self.profile, self.mode)
        image = Image.fromarray(pixels).convert(self.mode)
        levels = np.asarray(revert(image) if revert else image).reshape(*pixels.shape[:2], -1)
        return levels if self.levels.dtype == np.uint8 else levels.astype(np.uint16) * WIDE

    @property
    def mode(self) -> str:
        """Pillow's name for the channels without alpha: "L" or "RGB"."""
        return "L" if self.levels.shape[2] == 1 else "RGB"

    def png(self, text: Mapping[str, str] | None = None) -> bytes:
        """Encode as PNG with all that is kept, and ``text`` by keyword.

        The same photograph and text give the same bytes.
        """
        return png(self.levels, self.alpha, self._chunks(text or {}))

    def _chunks(self, text: Mapping[str, str]) -> Iterator[Chunk]:
        yield from self.shown_as
        if self.profile:
            yield profile_chunk(self.profile)
        if self.dpi:
            yield resolution_chunk(self.dpi)
        yield from text_chunks({**self.text, **text})
        if self.xmp:
            yield xmp_chunk(self.xmp)
        if self.exif:
            yield exif_chunk(self.exif)


def read_photograph(data: bytes, max_pixels: int = MAX_PIXELS) -> Photograph:
    """Read a photograph with everything that is kept.

    Args:
        data: a whole encoded file.
        max_pixels: largest width x height that is read.

    Raises:
        UndecodableImage: as `datasets.decoding.decode` does; but transparency is no reason.
    """
    photograph, turned = _as_stored(data, max_pixels)
    levels = upright(photograph.levels, turned)
    alpha = None if photograph.alpha is None else upright(photograph.alpha, turned)
    return _with_a_way_back(replace(photograph, levels=levels, alpha=alpha))


def _as_stored(data: bytes, max_pixels: int) -> tuple[Photograph, int]:
    """Read a photograph with its pixels as they are stored, and their EXIF orientation.

    The decoder's own copy of the pixels is gone when this returns.
    """
    with opened_image(data, max_pixels) as image:
        photograph = _pixels(image, data)
        turned = orientation(image)  # asked last: Pillow turns a TIFF when it loads it
        height, width = photograph.levels.shape[:2]
        sides = (height, width) if turned in TRANSPOSED else (width, height)
        dpi = _resolution(image)
        exif, exif_note = _exif(image, sides)
        photograph = replace(
            photograph,
            exif=exif,
            xmp=_xmp(image),
            dpi=dpi[::-1] if dpi and turned in TRANSPOSED else dpi,
            text=_text(image),
            shown_as=tuple(chunks_of(data, SHOWN_AS)) if image.format == "PNG" else (),
            notes=(*_frame_note(image), *photograph.notes, *exif_note),
        )
    return photograph, turned


def _pixels(image: Image.Image, data: bytes) -> Photograph:
    """Decode levels and alpha, and say which profile is theirs."""
    profile: bytes | None = image.info.get("icc_profile") or None
    opened = read_levels(image, data)
    if isinstance(opened, Image.Image) and opened.mode not in ("L", "LA", "RGB", "RGBA"):
        note = f"Its colours, {opened.mode}, became sRGB."
        opened, _ = to_srgb(opened, profile)
        return Photograph(*split(opened.convert("RGB")), notes=(note,))
    photograph = Photograph(*split(opened))
    if profile is None or is_for(profile, photograph.mode):
        return replace(photograph, profile=profile)
    name, _ = conversion(profile, photograph.mode)
    return replace(photograph, notes=(f"Its ICC profile was dropped: {name}.",))


def _with_a_way_back(photograph: Photograph) -> Photograph:
    """Return the photograph; in sRGB, if its profile cannot be returned to."""
    try:
        reversion(photograph.profile, photograph.mode)
    except ValueError as error:
        note = f"Its colours became sRGB of 8 bits: {error}."
        levels, alpha = photograph.srgb(), photograph.alpha
        if alpha is not None and alpha.dtype == np.uint16:
            alpha = (alpha >> 8).astype(np.uint8)
        return replace(
            photograph, levels=levels, alpha=alpha, profile=None, notes=(*photograph.notes, note)
        )
    return photograph


def _frame_note(image: Image.Image) -> tuple[str, ...]:
    """Say which frame or page this is, where there are several that can be counted."""
    with suppress(*DAMAGE):
        if (frames := getattr(image, "n_frames", 1)) > 1:
            return (f"Of {frames} frames or pages it is number {image.tell() + 1}.",)
    return ()


def _exif(image: Image.Image, sides: tuple[int, int]) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the EXIF metadata of an upright picture without its thumbnail, and a note."""
    try:
        found = image.getexif()
        if isinstance(image, TiffImageFile):
            found = _of_the_photograph(found)
        if not found:
            return None, (NO_EXIF,) if image.info.get("exif") else ()
        found[ORIENTATION] = 1
        details = found.get_ifd(ExifTags.IFD.Exif)
        for tag, side in zip(SIDES, sides, strict=True):
            if tag in details:
                details[tag] = side
        return found.tobytes(), ()
    except Exception as error:  # whatever is wrong with metadata, the picture may be whole
        return None, (f"{NO_EXIF} ({error})",)


def _of_the_photograph(found: Image.Exif) -> Image.Exif:
    """Leave out the tags by which a TIFF is laid out."""
    kept = Image.Exif()
    for tag in OF_PHOTOGRAPHS:
        if tag in found:
            kept[tag] = found[tag]
    for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if inside := found.get_ifd(part):
            kept.get_ifd(part).update(inside)
    return kept


def _xmp(image: Image.Image) -> bytes | None:
    """Return XMP metadata, whose orientation is that of an upright picture too."""
    xmp = image.info.get("xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode()
    return XMP_ORIENTATION.sub(rb"\g<1>1", xmp) if isinstance(xmp, bytes) and xmp else None


def _resolution(image: Image.Image) -> tuple[float, float] | None:
    """Return dots per inch, across and down, if they are numbers that PNG can hold."""
    with suppress(TypeError, ValueError, ZeroDivisionError):
        across, down = map(float, image.info.get("dpi", ()))
        if all(1 <= dots <= MOST_DOTS for dots in (across, down)):
            return across, down
    return None


def _text(image: Image.Image) -> dict[str, str]:
    """Return the text by its keywords, and a comment as one of them."""
    if isinstance(image, PngImageFile):
        return {
            keyword: str(value)
            for keyword, value in image.text.items()
            if is_keyword(keyword) and not keyword.startswith(METADATA_AS_TEXT)
        }
    comment = image.info.get("comment")
    if isinstance(comment, bytes):
        comment = comment.decode(errors="replace")
    return {"Comment": comment} if isinstance(comment, str) and comment else {}


def _image(levels: Pixels) -> Image.Image:
    return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
