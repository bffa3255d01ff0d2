"""Every kind of image has one rule, and every kind of damage one name."""

import io
import struct
import warnings
import zlib
from typing import Any

import cv2
import numpy as np
import pi_heif
import pillow_heif
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from datasets.decoding import UndecodableImage, decode, encode_png
from datasets.unusable import REASONS
from tests.conftest import picture

pillow_heif.register_heif_opener()  # it writes HEIC; what the project depends on only reads it
pi_heif.register_heif_opener()
RNG = np.random.default_rng(7)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY16 = (np.arange(600).reshape(20, 30) * 109).astype(np.uint16)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Encode an image in memory."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_lossless_formats_give_the_pixels() -> None:
    """PNG, TIFF, BMP and lossless WebP are exact."""
    image = Image.fromarray(COLOUR)
    for kind, options in (("PNG", {}), ("TIFF", {}), ("BMP", {}), ("WEBP", {"lossless": True})):
        assert np.array_equal(decode(encoded(image, kind, **options)), COLOUR), kind


def test_grey_is_its_channel_three_times() -> None:
    """Grey photographs stay grey."""
    found = decode(encoded(Image.fromarray(COLOUR[..., 0])))

    assert np.array_equal(found, np.repeat(COLOUR[..., :1], 3, 2))


def test_sixteen_bits_give_the_high_byte() -> None:
    """Grey 16-bit PNG and TIFF follow the rule that Pillow has for 48-bit colour."""
    expected = np.repeat((GREY16 >> 8).astype(np.uint8)[..., None], 3, 2)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(decode(encoded(Image.fromarray(GREY16), kind)), expected)


def png48(values: np.ndarray[Any, np.dtype[np.uint16]]) -> bytes:
    """Write a 48-bit RGB PNG, which Pillow itself cannot write."""
    height, width, _ = values.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_colour_of_sixteen_bits_follows_the_same_rule() -> None:
    """48-bit RGB gives the high byte too."""
    values = np.stack([GREY16, GREY16[::-1], GREY16 // 2], axis=-1)

    assert np.array_equal(decode(png48(values)), (values >> 8).astype(np.uint8))


def test_opaque_alpha_is_discarded_and_transparency_refused() -> None:
    """An alpha channel that says nothing changes nothing; one transparent pixel is a graphic."""
    opaque = np.dstack([COLOUR, np.full((20, 30), 255, np.uint8)])
    assert np.array_equal(decode(encoded(Image.fromarray(opaque))), COLOUR)

    opaque[3, 4, 3] = 254
    with pytest.raises(UndecodableImage) as caught:
        decode(encoded(Image.fromarray(opaque)))
    assert caught.value.reason == "transparent"


@pytest.mark.parametrize(
    ("pixels", "used", "unused"),
    [
        (COLOUR, tuple(map(int, COLOUR[2, 3])), (1, 2, 3)),
        (COLOUR[..., 0] | 1, int(COLOUR[2, 3, 0] | 1), 0),
        (GREY16, int(GREY16[2, 3]), 1),
    ],
    ids=["rgb", "grey", "grey16"],
)
def test_a_transparent_colour_counts_where_a_pixel_has_it(
    pixels: np.ndarray[Any, Any], used: Any, unused: Any
) -> None:
    """A colour declared transparent and in use is transparency; one out of use is none."""
    image = Image.fromarray(pixels)

    assert np.array_equal(decode(encoded(image, transparency=unused)), decode(encoded(image)))
    with pytest.raises(UndecodableImage, match="transparent"):
        decode(encoded(image, transparency=used))


def test_a_palette_is_looked_up_and_its_transparency_counts() -> None:
    """Colours come from the palette; a transparent entry in use is transparency."""
    palette = Image.fromarray(COLOUR).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(decode(encoded(palette)), expected)

    with pytest.raises(UndecodableImage, match="transparent"):
        decode(encoded(palette, transparency=int(np.asarray(palette)[0, 0])))


def test_one_bit_and_other_colour_spaces_are_converted() -> None:
    """Bilevel gives 0 and 255; CMYK, YCbCr and Lab are Pillow's conversions."""
    bits = decode(encoded(Image.fromarray(COLOUR[..., 0]).convert("1")))
    assert set(np.unique(bits)) <= {0, 255}

    for mode in ("CMYK", "YCbCr", "LAB"):
        other = Image.fromarray(COLOUR).convert(mode)
        assert np.array_equal(decode(encoded(other, "TIFF")), np.asarray(other.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """All eight orientations of one picture come out as the upright one."""
    inverse = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}
    turned = Image.fromarray(COLOUR)
    for method in inverse[orientation]:
        turned = turned.transpose(Image.Transpose(method))
    exif = Image.Exif()
    exif[0x0112] = orientation

    assert np.array_equal(decode(encoded(turned, "TIFF", exif=exif)), COLOUR)


def test_the_first_frame_counts() -> None:
    """Animations and multi-page files are their first picture."""
    first, second = Image.fromarray(COLOUR), Image.fromarray(COLOUR[::-1].copy())
    for kind, options in (("TIFF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        data = encoded(first, kind, save_all=True, append_images=[second], **options)
        assert np.array_equal(decode(data), COLOUR), kind
    several = encoded(first, "MPO", save_all=True, append_images=[second])  # a telephone's JPEG
    assert np.array_equal(decode(several), decode(encoded(first, "JPEG")))


def test_twelve_bits_are_not_taken_for_sixteen() -> None:
    """Pillow gives 12-bit values unscaled: sixteen times too dark to be used."""
    sixteen = encoded(Image.fromarray(GREY16), "TIFF")
    tag = struct.pack("<HHIH", 258, 3, 1, 16)  # BitsPerSample, one SHORT
    assert sixteen.count(tag) == 1

    with pytest.raises(UndecodableImage, match="unsupported_mode"):
        decode(sixteen.replace(tag, struct.pack("<HHIH", 258, 3, 1, 12)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"<html>404 not found</html>", "not_an_image"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (encoded(Image.fromarray(COLOUR), "TIFF", compression="tiff_lzw")[:100], "truncated"),
        (encoded(Image.fromarray(COLOUR), "GIF"), "not_an_image"),
        (encoded(Image.fromarray(COLOUR))[:-400], "truncated"),
        (encoded(Image.fromarray(COLOUR), "JPEG")[:-100], "truncated"),
        (encoded(Image.fromarray(GREY16.astype(np.float32)), "TIFF"), "unsupported_mode"),
        (encoded(Image.fromarray(GREY16.astype(np.int32) * 9), "TIFF"), "unsupported_mode"),
    ],
)
def test_damage_has_a_name(data: bytes, reason: str) -> None:
    """The reason is the one expected, and no warning escapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UndecodableImage) as caught:
            decode(data)

    assert caught.value.reason == reason


def test_a_bomb_is_refused_by_its_header() -> None:
    """A header that promises 10 gigapixels is believed, its pixels are not decoded."""
    huge = png48(np.zeros((1, 1, 3), np.uint16))
    bomb = huge[:16] + struct.pack(">II", 100_000, 100_000) + huge[24:29]
    bomb += struct.pack(">I", zlib.crc32(b"IHDR" + bomb[16:29])) + huge[33:]
    for data, limit in ((bomb, 10**12), (bomb, 599), (encoded(Image.fromarray(COLOUR)), 599)):
        with pytest.raises(UndecodableImage) as caught:
            decode(data, max_pixels=limit)
        assert caught.value.reason == "too_many_pixels"

    assert decode(encoded(Image.fromarray(COLOUR)), max_pixels=600).shape == (20, 30, 3)


def smooth(width: int = 384, height: int = 288) -> Image.Image:
    """Draw a picture with detail everywhere, as a photograph has."""
    return picture(5, width, height)


def half_lost(progressive: bool) -> bytes:
    """Return a JPEG of whose scans the second half is missing, with its end mark in place."""
    whole = encoded(smooth(), "JPEG", quality=90, progressive=progressive)
    scan = whole.index(b"\xff\xda")
    return whole[: scan + (len(whole) - scan) // 2] + b"\xff\xd9"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_which_half_is_lost_is_truncated(progressive: bool) -> None:
    """Its end mark is in place, and libjpeg fills the rest with grey."""
    data = half_lost(progressive)
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # Pillow says nothing

    with pytest.raises(UndecodableImage, match="truncated"):
        decode(data)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0, "optimize": True}),
        ("RGB", {"restart_marker_rows": 1}),
        ("RGB", {"keep_rgb": True}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_a_jpeg_has_the_pixels_that_pillow_gives(mode: str, options: dict[str, Any]) -> None:
    """Two programs over one library; rubbish after the end mark and before it is harmless."""
    data = encoded(smooth(96, 72).convert(mode), "JPEG", **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))

    assert np.array_equal(decode(data), expected)
    assert np.array_equal(decode(data + b"appended by a camera"), expected)
    assert np.array_equal(decode(data[:-2] + b"odd" + data[-2:]), expected)


def jpeg_with_exif(entries: list[tuple[int, int, int, bytes]], twice: bool = False) -> bytes:
    """Return a JPEG with EXIF entries (tag, type, count, 4 bytes of value)."""
    body = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    body += b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries) + bytes(4)
    body = b"Exif\0\0" * (2 if twice else 1) + body
    whole = encoded(smooth(96, 72), "JPEG")
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + whole[2:]


ORIENTATION_6 = (0x0112, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize(
    ("entries", "twice"),
    [
        ([(0x010F, 11, 1, struct.pack("<f", 1.5)), ORIENTATION_6], False),  # Make is a float
        ([ORIENTATION_6, (0x0128, 8, 1, struct.pack("<hh", -3, 0))], False),
        ([ORIENTATION_6], True),
    ],
    ids=["float-make", "negative-short", "double-header"],
)
def test_odd_metadata_cost_no_picture(
    entries: list[tuple[int, int, int, bytes]], twice: bool
) -> None:
    """The orientation counts; nothing else of EXIF is read, and nothing is rewritten."""
    plain = decode(encoded(smooth(96, 72), "JPEG"))

    assert np.array_equal(decode(jpeg_with_exif(entries, twice)), np.rot90(plain, -1))


@pytest.mark.parametrize("value", [0, 9, 700])
def test_an_orientation_that_does_not_exist_is_none(value: int) -> None:
    """The picture stays as it is."""
    entry = (0x0112, 3, 1, struct.pack("<HH", value, 0))

    assert decode(jpeg_with_exif([entry])).shape == (72, 96, 3)


def test_a_png_with_much_text_is_decoded() -> None:
    """1.2 MB of notes, compressed or not, are no reason to drop a photograph."""
    for compressed in (True, False):
        text = PngImagePlugin.PngInfo()
        text.add_text("notes", "0123456789ab" * 100_000, zip=compressed)
        assert np.array_equal(decode(encoded(Image.fromarray(COLOUR), pnginfo=text)), COLOUR)


def test_text_that_is_a_bomb_is_not_called_a_truncated_picture() -> None:
    """More than 64 MiB of it are refused by the reason's own name."""
    kind, data = b"zTXt", b"bomb\0\0" + zlib.compress(bytes(65 << 20), 1)
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    whole = encoded(Image.fromarray(COLOUR))
    with pytest.raises(UndecodableImage) as caught:
        decode(whole[:33] + chunk + whole[33:])

    assert caught.value.reason == "oversized_metadata"


def tiff(*pages: tuple[np.ndarray[Any, Any], dict[str, Any]]) -> bytes:
    """Write a TIFF with tifffile, which Pillow's writer has no part in."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for pixels, options in pages:
            file.write(pixels, **options)
    return buffer.getvalue()


PLANES = np.stack([GREY16, GREY16[::-1], GREY16 // 2])


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "predictor": True}])
def test_planes_of_sixteen_bits_are_put_together(options: dict[str, Any]) -> None:
    """Pillow takes them for planes of 8 bits, and gives noise."""
    data = tiff((PLANES, {"photometric": "rgb", "planarconfig": "separate", **options}))

    assert np.array_equal(decode(data), (PLANES >> 8).astype(np.uint8).transpose(1, 2, 0))


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_white_may_be_zero(byteorder: str) -> None:
    """MinIsWhite of 16 bits is turned round, as that of 8 bits is."""
    expected = np.repeat((255 - (GREY16 >> 8)).astype(np.uint8)[..., None], 3, 2)
    for pixels in (GREY16, (GREY16 >> 8).astype(np.uint8)):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, pixels, photometric="miniswhite", byteorder=byteorder)
        assert np.array_equal(decode(buffer.getvalue()), expected)


def test_a_thumbnail_before_the_picture_is_passed_over() -> None:
    """And so is a mask; a file of thumbnails alone gives the first."""
    small, whole = COLOUR[::2, ::2].copy(), COLOUR
    reduced, other = {"subfiletype": 1, "photometric": "rgb"}, {"subfiletype": 2}
    pages = [(small, reduced), (COLOUR[..., 0].copy(), other), (whole, {"photometric": "rgb"})]
    data = tiff(*pages)
    page, mask = (struct.pack("<HHII", 254, 4, 1, kind) for kind in (2, 4))
    assert data.count(page) == 1

    assert np.array_equal(decode(data.replace(page, mask)), whole)
    assert np.array_equal(decode(tiff(pages[0])), small)
    with pytest.raises(UndecodableImage, match="too_many_pixels"):
        decode(data.replace(page, mask), max_pixels=small.size)


def test_planes_of_another_kind_have_a_reason() -> None:
    """A fourth one has no fixed meaning: noise is never given for it."""
    four = np.concatenate([PLANES, PLANES[:1]])
    options = {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unspecified"]}

    with pytest.raises(UndecodableImage, match=r"unsupported_mode|truncated"):
        decode(tiff((four, options)))


@pytest.mark.parametrize(("kind", "turns"), [("AVIF", -1), ("HEIF", 0)])
def test_telephones_pictures_are_decoded(kind: str, turns: int) -> None:
    """HEIC and AVIF come out near the original; cut ones are truncated.

    Both keep an orientation of their own, which their decoders apply. Pillow's writer of AVIF makes
    it from EXIF's; that of HEIF does not, and a reader has to pass over EXIF's.
    """
    exif = Image.Exif()
    exif[0x0112] = 6
    original = smooth(96, 64)
    data = encoded(original, kind, quality=95, exif=exif)
    found = decode(data)
    expected = np.rot90(np.asarray(original), turns).astype(int)

    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 8
    with pytest.raises(UndecodableImage, match="truncated"):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out_of_memory"),
        (RecursionError("deep"), "undecodable"),
        (AttributeError("'float' object has no attribute 'encode'"), "undecodable"),
        (cv2.error("inside"), "undecodable"),
        (ZeroDivisionError(), "undecodable"),
        (SyntaxError("broken PNG file"), "truncated"),
    ],
)
def test_whatever_a_decoder_raises_has_a_reason(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    """No exception of a library leaves `decode`."""

    def fail(_: Any) -> None:
        raise error

    data = encoded(Image.fromarray(COLOUR))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(UndecodableImage) as caught:
        decode(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Ctrl-C is no property of an image."""

    def fail(_: Any) -> None:
        raise error

    data = encoded(Image.fromarray(COLOUR))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(error):
        decode(data)


TURNED = Image.Exif()
TURNED[0x0112] = 6
SAMPLES = {
    kind: encoded(Image.fromarray(COLOUR), kind, exif=TURNED)
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "HEIF")
}


@settings(max_examples=300)
@given(
    kind=st.sampled_from(sorted(SAMPLES)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=5),
    kept=st.floats(0, 1),
)
def test_damage_gives_pixels_or_a_reason(
    kind: str, changes: list[tuple[float, int]], kept: float
) -> None:
    """Whatever happened to a file, only pixels or a known reason come out."""
    data = bytearray(SAMPLES[kind])
    for place, value in changes:
        data[int(place * len(data))] = value
    reason, image = None, COLOUR
    try:
        image = decode(bytes(data[: round(kept * len(data))]), max_pixels=1_000_000)
    except UndecodableImage as error:
        reason = error.reason

    assert reason is None or reason in REASONS
    assert image.dtype == np.uint8
    assert image.shape[2:] == (3,)


def test_png_gives_back_the_pixels_and_always_the_same_bytes() -> None:
    """What goes into a shard is lossless and carries no metadata."""
    data = encode_png(COLOUR)

    assert np.array_equal(decode(data), COLOUR)
    assert data == encode_png(np.asfortranarray(COLOUR))
    kinds = []
    place = 8
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        kinds.append(kind)
        place += 12 + length
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}
