"""A photograph that is written again has the levels, and all else, that its file had."""

import io
import math
import struct
from typing import Any

import numpy as np
import pillow_heif
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from datasets.decoding import MAX_PIXELS, UndecodableImage, decode
from datasets.photographs import Photograph, read_photograph
from datasets.png import chunks_of, offset_chunk, png, text_chunks
from tests.support.icc_profiles import SRGB, adobe_rgb, grey_gamma, scanner

pillow_heif.register_heif_opener()  # it writes HEIC; what the project depends on only reads it
RNG = np.random.default_rng(5)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
WIDE = RNG.integers(0, 65536, (20, 30, 4), dtype=np.uint16)
ALPHA = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
BY_ORIENTATION = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: np.swapaxes(pixels, 0, 1),
    6: lambda pixels: np.rot90(pixels, 1),
    7: lambda pixels: np.swapaxes(np.rot90(pixels, 2), 0, 1),
    8: lambda pixels: np.rot90(pixels, -1),
}
"""How an upright picture is stored by EXIF's definition of each orientation."""


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Encode an image in memory."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray[Any, Any], **options: Any) -> bytes:
    """Write a TIFF of any depth."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def again(photograph: Photograph, text: dict[str, str] | None = None) -> Photograph:
    """Write a photograph and read it."""
    return read_photograph(photograph.png(text))


def with_alpha(photograph: Photograph) -> np.ndarray[Any, Any]:
    """Return all channels."""
    if photograph.alpha is None:
        return photograph.levels
    return np.dstack([photograph.levels, photograph.alpha])


@settings(max_examples=60)
@given(
    channels=st.sampled_from([1, 2, 3, 4]),
    kind=st.sampled_from([np.uint8, np.uint16]),
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 99),
)
def test_png_gives_back_every_level(
    channels: int, kind: type[np.uint8 | np.uint16], sides: tuple[int, int], seed: int
) -> None:
    """Grey and colour of 8 and 16 bits, with alpha and without, are exact, and always the same."""
    drawn = np.random.default_rng(seed).integers(0, np.iinfo(kind).max, (*sides, channels), kind)
    colours = channels - (channels in (2, 4))
    alpha = drawn[..., colours] if channels in (2, 4) else None
    data = png(drawn[..., :colours], alpha)
    found = read_photograph(data)

    assert found.levels.dtype == kind
    assert found.levels.flags.writeable
    assert found.levels.flags.c_contiguous
    assert np.array_equal(with_alpha(found), drawn)
    assert found.png() == data
    assert found.notes == ()


@pytest.mark.parametrize("strip", [1, 40, 1 << 20])
def test_strips_leave_no_trace(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is compressed and copied at a time, the pixels are the same."""
    monkeypatch.setattr("datasets.png.STRIP", strip)
    monkeypatch.setattr("datasets.levels.STRIP", strip)
    monkeypatch.setattr("datasets.photographs.STRIP", strip)
    found = read_photograph(encoded(Image.fromarray(np.dstack([COLOUR, ALPHA]))))
    adobe = read_photograph(encoded(Image.fromarray(COLOUR), icc_profile=adobe_rgb()))

    assert np.array_equal(with_alpha(again(found)), np.dstack([COLOUR, ALPHA]))
    assert np.array_equal(
        adobe.srgb(), decode(encoded(Image.fromarray(COLOUR), icc_profile=adobe_rgb()))
    )


def test_a_png_of_the_writer_is_opened_by_others() -> None:
    """What is written is a PNG to Pillow too, with its chunks in the places that PNG asks for."""
    data = png(COLOUR, ALPHA, [offset_chunk(7, -3), *text_chunks({"Title": "née", "Ort": "Łódź"})])
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(image), np.dstack([COLOUR, ALPHA]))
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert image.text == {"Title": "née", "Ort": "Łódź"}

    assert struct.unpack(">iiB", chunks_of(data, [b"oFFs"])[0][1]) == (7, -3, 0)


def test_what_no_png_can_hold_is_refused() -> None:
    """Other pixels and keywords are named, with what is allowed."""
    with pytest.raises(ValueError, match=r"float64 \[20, 30, 3\]: a PNG holds uint8 or uint16"):
        png(COLOUR.astype(np.float64))  # type: ignore[arg-type]
    for keyword in ("", "x" * 80, "Łódź", "a\nb"):
        with pytest.raises(ValueError, match="1 to 79 printable characters"):
            text_chunks({keyword: "text"})


OPAQUE = {
    "rgb": encoded(Image.fromarray(COLOUR)),
    "grey": encoded(Image.fromarray(COLOUR[..., 0])),
    "one bit": encoded(Image.fromarray(COLOUR[..., 0]).convert("1")),
    "palette": encoded(Image.fromarray(COLOUR).quantize(16)),
    "grey 16": encoded(Image.fromarray(WIDE[..., 0])),
    "grey 16 tiff": tiff(WIDE[..., 0], byteorder=">"),
    "white is zero": tiff(WIDE[..., 0], photometric="miniswhite"),
    "rgb 16": png(WIDE[..., :3]),
    "rgb 16 tiff": tiff(WIDE[..., :3], photometric="rgb", compression="zlib"),
    "rgb 16 planes": tiff(
        np.moveaxis(WIDE[..., :3], 2, 0), photometric="rgb", planarconfig="separate"
    ),
    "jpeg": encoded(Image.fromarray(COLOUR), "JPEG"),
    "grey jpeg": encoded(Image.fromarray(COLOUR[..., 0]), "JPEG"),
    "cmyk jpeg": encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"),
    "lab tiff": encoded(Image.fromarray(COLOUR).convert("LAB"), "TIFF"),
    "webp": encoded(Image.fromarray(COLOUR), "WEBP", lossless=True),
    "heic": encoded(Image.fromarray(COLOUR), "HEIF"),
    "avif": encoded(Image.fromarray(COLOUR), "AVIF"),
    "adobe rgb": encoded(Image.fromarray(COLOUR), icc_profile=adobe_rgb()),
    "adobe rgb jpeg": encoded(Image.fromarray(COLOUR), "JPEG", icc_profile=adobe_rgb()),
    "grey of gamma 1": encoded(Image.fromarray(COLOUR[..., 0]), icc_profile=grey_gamma(1.0)),
    "scanner": encoded(Image.fromarray(COLOUR), icc_profile=scanner()),
}
IS_GREY = {"grey", "one bit", "grey 16", "grey 16 tiff", "white is zero", "grey jpeg"}
IS_GREY |= {"grey of gamma 1"}
CHANGED = {
    "cmyk jpeg": "Its colours, CMYK, became sRGB.",
    "lab tiff": "Its colours, LAB, became sRGB.",
    "scanner": "Its colours became sRGB of 8 bits: the profile Scanner has no way back from sRGB.",
}


@pytest.mark.parametrize("kind", OPAQUE)
def test_every_kind_is_shown_as_it_is_decoded(kind: str) -> None:
    """A restorer sees what curation makes of the same file; what is written shows it too."""
    found = read_photograph(OPAQUE[kind])

    assert np.array_equal(found.srgb(), decode(OPAQUE[kind]))
    assert found.mode == ("L" if kind in IS_GREY else "RGB")
    assert found.notes == ((CHANGED[kind],) if kind in CHANGED else ())
    written = again(found)
    assert np.array_equal(written.levels, found.levels)
    assert written.profile == found.profile
    assert np.array_equal(decode(found.png()), decode(OPAQUE[kind]))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("rgb", COLOUR),
        ("grey", COLOUR[..., :1]),
        ("grey 16", WIDE[..., :1]),
        ("grey 16 tiff", WIDE[..., :1]),
        ("white is zero", 65535 - WIDE[..., :1]),
        ("rgb 16", WIDE[..., :3]),
        ("rgb 16 tiff", WIDE[..., :3]),
        ("rgb 16 planes", WIDE[..., :3]),
        ("adobe rgb", COLOUR),
        ("grey of gamma 1", COLOUR[..., :1]),
    ],
)
def test_levels_are_the_files_own(kind: str, expected: np.ndarray[Any, Any]) -> None:
    """No level of 8 or 16 bits is touched, whatever the profile."""
    found = read_photograph(OPAQUE[kind])

    assert found.levels.dtype == expected.dtype
    assert np.array_equal(found.levels, expected)


@pytest.mark.parametrize("bits", [10, 12])
def test_telephones_deep_pictures_keep_their_depth(bits: int) -> None:
    """HEIC of 10 and 12 bits fills 16, so that white is white."""
    ramp = np.linspace(0, 2**bits - 1, 64 * 64).astype(np.uint16).reshape(64, 64)
    grey = np.repeat(ramp[..., None], 3, axis=2) << (16 - bits)
    deep = pillow_heif.from_bytes("RGB;16", (64, 64), grey.tobytes())
    buffer = io.BytesIO()
    pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
    deep.save(buffer, quality=-1, chroma=444)
    pillow_heif.options.SAVE_HDR_TO_12_BIT = False
    found = read_photograph(buffer.getvalue()).levels

    assert found.dtype == np.uint16
    assert (found.min(), found.max()) == (0, 65535)
    assert np.abs(found.astype(int) - (grey.astype(int) | grey >> bits)).max() <= 2 << (16 - bits)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(Image.fromarray(np.dstack([COLOUR, ALPHA]))), np.dstack([COLOUR, ALPHA])),
        (
            encoded(Image.fromarray(np.dstack([COLOUR[..., 0], ALPHA]))),
            np.dstack([COLOUR[..., 0], ALPHA]),
        ),
        (png(WIDE[..., :3], WIDE[..., 3]), WIDE),
        (png(WIDE[..., :1], WIDE[..., 3]), WIDE[..., [0, 3]]),
        (tiff(WIDE, photometric="rgb", extrasamples=["unassalpha"]), WIDE),
        (
            tiff(np.dstack([COLOUR, ALPHA]), photometric="rgb", extrasamples=["unassalpha"]),
            np.dstack([COLOUR, ALPHA]),
        ),
        (
            encoded(Image.fromarray(COLOUR), transparency=tuple(map(int, COLOUR[2, 3]))),
            np.dstack([COLOUR, np.where((COLOUR[2, 3] == COLOUR).all(2), 0, 255)]),
        ),
        (
            encoded(Image.fromarray(COLOUR[..., 0]), transparency=int(COLOUR[2, 3, 0])),
            np.dstack(
                [COLOUR[..., 0], np.where(COLOUR[..., 0] == COLOUR[2, 3, 0], 0, 255)],
            ),
        ),
        (
            encoded(Image.fromarray(WIDE[..., 0]), transparency=int(WIDE[2, 3, 0])),
            np.dstack([WIDE[..., 0], np.where(WIDE[..., 0] == WIDE[2, 3, 0], 0, 65535)]),
        ),
    ],
    ids=["rgb", "grey", "rgb16", "grey16", "tiff16", "tiff", "colour", "level", "level16"],
)
def test_alpha_is_kept(data: bytes, expected: np.ndarray[Any, Any]) -> None:
    """An alpha channel, or a colour declared transparent, is alpha; colours under it stay."""
    found = read_photograph(data)

    assert np.array_equal(with_alpha(found), expected)
    assert np.array_equal(with_alpha(again(found)), expected)


def test_a_transparent_palette_keeps_its_alpha() -> None:
    """What a palette says of its entries becomes an alpha channel."""
    palette = Image.fromarray(COLOUR).quantize(16)
    entry = int(np.asarray(palette)[0, 0])
    found = read_photograph(encoded(palette, transparency=entry))

    assert np.array_equal(found.levels, np.asarray(palette.convert("RGB")))
    assert np.array_equal(found.alpha, np.where(np.asarray(palette) == entry, 0, 255))


def test_colours_multiplied_by_alpha_are_divided() -> None:
    """A TIFF of 16 bits with associated alpha has the colours that it means; PNG's are plain."""
    alpha = np.maximum(WIDE[..., 3:], 1000)
    plain = np.uint32(WIDE[..., :3])
    multiplied = np.uint16((plain * alpha + 32767) // 65535)
    found = read_photograph(
        tiff(np.dstack([multiplied, alpha]), photometric="rgb", extrasamples=["assocalpha"])
    )

    assert np.array_equal(found.alpha, alpha[..., 0])
    assert (np.abs(found.levels.astype(int) - plain) <= 65535 // (2 * alpha) + 1).all()


def described(orientation: int) -> Image.Exif:
    """Make metadata with something in every part."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Artist] = "Grandmother"
    exif[ExifTags.Base.Model] = "Box camera"
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.DateTimeOriginal] = "1954:07:01 12:00:00"
    details[ExifTags.Base.ExposureTime] = 0.01
    details[ExifTags.Base.ExifImageWidth] = 30
    details[ExifTags.Base.ExifImageHeight] = 20
    details[ExifTags.Base.MakerNote] = b"\x00secret\xff"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 12.5)
    written = Image.Exif()
    written.load(exif.tobytes())  # a TIFF gets the parts of such metadata alone
    return written


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_pixels_are_upright_and_say_so(kind: str, orientation: int) -> None:
    """All eight orientations are applied once; EXIF has 1, the new sides, and every other tag."""
    upright = np.asarray(Image.fromarray(COLOUR[:5, :7]).resize((56, 40), 0))
    stored = Image.fromarray(np.ascontiguousarray(BY_ORIENTATION[orientation](upright)))
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
    found = read_photograph(encoded(stored, kind, exif=described(orientation), **options))
    exif = Image.Exif()
    exif.load(found.exif or b"")
    details = exif.get_ifd(ExifTags.IFD.Exif)

    assert np.abs(found.levels.astype(int) - upright).max() <= (3 if kind == "JPEG" else 0)
    assert found.levels.flags.c_contiguous
    assert exif[ExifTags.Base.Orientation] == 1
    assert (exif[ExifTags.Base.Artist], exif[ExifTags.Base.Model]) == ("Grandmother", "Box camera")
    assert details[ExifTags.Base.DateTimeOriginal] == "1954:07:01 12:00:00"
    assert details[ExifTags.Base.ExposureTime] == 0.01
    assert details[ExifTags.Base.MakerNote] == b"\x00secret\xff"
    assert (details[ExifTags.Base.ExifImageWidth], details[ExifTags.Base.ExifImageHeight]) == (
        56,
        40,
    )
    assert exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] == (52.0, 31.0, 12.5)
    assert not {ExifTags.Base.StripOffsets, ExifTags.Base.ImageWidth} & exif.keys()
    assert np.array_equal(decode(found.png()), found.srgb())
    assert again(found).exif == found.exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bits_are_upright_too(orientation: int) -> None:
    """TIFFs of 16 bits, which Pillow does not decode in full, are turned once as well."""
    stored = np.ascontiguousarray(BY_ORIENTATION[orientation](WIDE))
    options: dict[str, Any] = {"extratags": [(0x0112, "H", 1, orientation, True)]}
    for channels in ({"extrasamples": ["unassalpha"]}, None):
        pixels = stored if channels else np.ascontiguousarray(stored[..., :3])
        found = read_photograph(tiff(pixels, photometric="rgb", **(channels or {}), **options))
        assert np.array_equal(with_alpha(found), WIDE if channels else WIDE[..., :3])
    grey = read_photograph(tiff(np.ascontiguousarray(stored[..., 0]), **options))
    assert np.array_equal(grey.levels, WIDE[..., :1])


def test_a_thumbnail_goes() -> None:
    """The small picture inside EXIF would still show the face as it was."""
    small = encoded(Image.fromarray(COLOUR).resize((8, 6)), "JPEG")
    # Big-endian TIFF: one tag (Orientation), then a second directory with the thumbnail.
    first = struct.pack(">H", 1) + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">I", 26)
    second = struct.pack(">H", 2) + struct.pack(">HHII", 0x0201, 4, 1, 56)
    second += struct.pack(">HHII", 0x0202, 4, 1, len(small)) + struct.pack(">I", 0)
    exif = b"Exif\0\0" + b"MM\0*" + struct.pack(">I", 8) + first + second + small
    data = encoded(Image.fromarray(COLOUR), "JPEG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:  # it is there in what is read
        assert ExifTags.Base.JpegIFOffset in image.getexif().get_ifd(ExifTags.IFD.IFD1)
    found = read_photograph(data)

    assert found.levels.shape == (30, 20, 3)
    assert found.exif is not None
    assert small[:20] not in found.exif
    kept = Image.Exif()
    kept.load(found.exif)
    assert kept.get_ifd(ExifTags.IFD.IFD1) == {}


def test_what_else_a_file_says_is_kept() -> None:
    """Resolution, text, a comment, XMP but for its orientation, and a PNG's gamma."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6" dc:title="Us"/></x:xmpmeta>'
    image = Image.fromarray(COLOUR)
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "Grandfather")
    text.add_text("Raw profile type exif", "\nexif\n   0\n")
    text.add(b"gAMA", struct.pack(">I", 55555))
    read = again(
        read_photograph(encoded(image, pnginfo=text, dpi=(300, 600), exif=described(6))),
        {"bundle": "sha256:1"},
    )
    jpeg = again(
        read_photograph(encoded(image, "JPEG", comment="On the beach", xmp=xmp, dpi=(72, 72)))
    )

    assert read.dpi is not None
    assert [round(dots) for dots in read.dpi] == [600, 300]  # it lay on its side
    assert read.text == {"Author": "Grandfather", "bundle": "sha256:1"}
    assert read.shown_as == ((b"gAMA", struct.pack(">I", 55555)),)
    assert jpeg.text == {"Comment": "On the beach"}
    assert jpeg.xmp == xmp.replace(b'Orientation="6"', b'Orientation="1"')
    assert jpeg.levels.shape == (30, 20, 3)  # Pillow takes an orientation from XMP too
    assert jpeg.dpi is not None
    assert round(jpeg.dpi[0]) == 72


def test_metadata_that_no_file_can_hold_cost_no_picture() -> None:
    """A resolution of nothing is none; damaged EXIF is dropped, and said."""
    still = encoded(Image.fromarray(COLOUR), "JPEG", dpi=(1, 1))
    assert read_photograph(still.replace(b"\x00\x01\x00\x01", b"\x00\x00\x00\x00", 1)).dpi is None
    found = read_photograph(encoded(Image.fromarray(COLOUR), "JPEG", exif=b"Exif\0\0no TIFF"))

    assert found.levels.shape == COLOUR.shape
    assert found.exif is None
    assert len(found.notes) == 1
    assert found.notes[0].startswith("Its EXIF metadata hold nothing that can be read")


@pytest.mark.parametrize(
    ("pixels", "profile", "note"),
    [
        (COLOUR, grey_gamma(1.0), "Its ICC profile was dropped: Gray (not applied: it is for GRAY"),
        (COLOUR[..., 0], adobe_rgb(), "Its ICC profile was dropped: Adobe RGB (1998) (not applied"),
        (COLOUR, b"no profile", "Its ICC profile was dropped: a damaged profile of 10 bytes"),
    ],
    ids=["grey's", "colour's", "damaged"],
)
def test_a_profile_that_does_not_fit_is_dropped_and_said(
    pixels: np.ndarray[Any, Any], profile: bytes, note: str
) -> None:
    """A PNG of grey with a profile of colours is no PNG; levels stay as they are."""
    found = read_photograph(encoded(Image.fromarray(pixels), "TIFF", icc_profile=profile))

    assert found.profile is None
    assert len(found.notes) == 1
    assert found.notes[0].startswith(note)
    assert np.array_equal(found.levels.reshape(pixels.shape), pixels)


def test_several_frames_are_said() -> None:
    """The first frame of an animation is the photograph, and the note says of how many."""
    images = [Image.fromarray(COLOUR), Image.fromarray(COLOUR[::-1].copy())]
    for kind in ("PNG", "TIFF", "WEBP"):
        data = encoded(images[0], kind, save_all=True, append_images=images[1:], lossless=True)
        found = read_photograph(data)
        assert found.notes == ("Of 2 frames or pages it is number 1.",), kind
        assert np.array_equal(found.levels, COLOUR)


@pytest.mark.parametrize("kind", ["rgb", "grey", "rgb 16", "grey 16", "scanner", "cmyk jpeg"])
def test_srgb_and_back_is_exact_without_a_profile(kind: str) -> None:
    """Levels of 8 bits come back; of 16 bits their first 8."""
    found = read_photograph(OPAQUE[kind])
    back = found.from_srgb(found.srgb())

    assert back.dtype == found.levels.dtype
    assert back.shape == found.levels.shape
    if back.dtype == np.uint16:
        assert np.array_equal(back >> 8, found.levels >> 8)
    else:
        assert np.array_equal(back, found.levels)


def test_colours_go_to_srgb_and_back_into_a_profile() -> None:
    """What sRGB can show comes back within two levels of Adobe RGB; grey within one."""
    inside = np.linspace(110, 150, 20 * 30 * 3).reshape(20, 30, 3).round().astype(np.uint8)
    inside[..., 1] = inside[::-1, :, 1]
    adobe = read_photograph(encoded(Image.fromarray(inside), icc_profile=adobe_rgb()))
    moved = np.abs(adobe.srgb().astype(int) - inside)
    back = np.abs(adobe.from_srgb(adobe.srgb()).astype(int) - inside)
    grey = read_photograph(OPAQUE["grey of gamma 1"])
    shown = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    linear = grey.from_srgb(shown)[0, :, 0]
    expected = 255 * np.where(
        np.arange(256) <= 10.31,
        shown[0, :, 0] / 255 / 12.92,
        ((shown[0, :, 0] / 255 + 0.055) / 1.055) ** 2.4,
    )

    assert moved.max() > 4  # there is something to undo
    assert back.max() <= 2
    assert np.abs(linear - expected).max() <= 1.01  # rounded twice
    assert math.isclose(
        read_photograph(encoded(Image.fromarray(COLOUR), icc_profile=SRGB)).srgb().mean(),
        COLOUR.mean(),
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"no picture", "not_an_image"),
        (OPAQUE["rgb 16"][:-300], "truncated"),
        (OPAQUE["rgb 16 tiff"][:-2000], "truncated"),
        (OPAQUE["jpeg"][:300], "truncated"),
        (tiff(COLOUR[..., 0].astype(np.float32)), "unsupported_mode"),
        (encoded(Image.new("1", (MAX_PIXELS // 10_000 + 1, 10_000))), "too_many_pixels"),
    ],
)
def test_damage_has_the_name_that_it_has_elsewhere(data: bytes, reason: str) -> None:
    """Errors are those of `decode`; 178 megapixels are the most."""
    with pytest.raises(UndecodableImage) as caught:
        read_photograph(data)

    assert caught.value.reason == reason


DAMAGED = {
    **{kind: OPAQUE[kind] for kind in ("rgb 16", "rgb 16 tiff", "grey 16", "heic", "adobe rgb")},
    "alpha": encoded(Image.fromarray(np.dstack([COLOUR, ALPHA])), exif=described(6)),
    "jpeg": encoded(Image.fromarray(COLOUR), "JPEG", exif=described(6), comment="us"),
}


@settings(max_examples=150)
@given(
    kind=st.sampled_from(sorted(DAMAGED)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=5),
    kept=st.floats(0, 1),
)
def test_damage_gives_a_photograph_or_a_reason(
    kind: str, changes: list[tuple[float, int]], kept: float
) -> None:
    """Whatever bytes change or are missing, what is read can be written, or has a reason."""
    data = bytearray(DAMAGED[kind])
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        found = read_photograph(bytes(data[: round(kept * len(data))] if kept > 0.2 else data))
    except UndecodableImage:
        return
    assert np.array_equal(with_alpha(again(found)), with_alpha(found))
