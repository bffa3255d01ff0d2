"""ICC profiles of version 2, written byte by byte."""

import struct

from PIL import ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ADOBE_RED, ADOBE_GREEN, ADOBE_BLUE = (  # of Adobe RGB (1998), section 4.3.6.1: D50-adapted XYZ
    *((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087)),
    *((0.14919, 0.06322, 0.74457),),
)


def s15(value: float) -> bytes:
    """Encode an ICC fixed-point number."""
    return struct.pack(">i", round(value * 65536))


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Write an ICC profile of version 2: a header, a table of tags, their data."""
    table, data = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(data), len(content))
        data += padded
    size = start + len(data)
    white = s15(0.9642) + s15(1.0) + s15(0.8249)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + white + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + data


def described(name: str) -> bytes:
    """Encode the description of a profile."""
    text = name.encode() + b"\0"
    return b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)


def xyz(x: float, y: float, z: float) -> bytes:
    """Encode a colour."""
    return b"XYZ " + bytes(4) + s15(x) + s15(y) + s15(z)


def gamma(value: float) -> bytes:
    """Encode a curve."""
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


def adobe_rgb() -> bytes:
    """Write the profile of Adobe RGB (1998): gamma 563/256 and its three primaries."""
    curve = gamma(563 / 256)
    return icc(
        b"RGB ",
        {
            b"desc": described("Adobe RGB (1998)"),
            b"wtpt": xyz(0.9642, 1.0, 0.8249),
            **{b"rTRC": curve, b"gTRC": curve, b"bTRC": curve},
            **{b"rXYZ": xyz(*ADOBE_RED), b"gXYZ": xyz(*ADOBE_GREEN), b"bXYZ": xyz(*ADOBE_BLUE)},
        },
    )


def grey_gamma(value: float) -> bytes:
    """Write a profile of grey with a gamma."""
    tags = {b"desc": described("Gray"), b"wtpt": xyz(0.9642, 1.0, 0.8249), b"kTRC": gamma(value)}
    return icc(b"GRAY", tags)


def scanner() -> bytes:
    """Write the profile of a scanner: a table from RGB to Lab (ICC.1, lut8Type), and none back."""
    ramp = bytes(range(256))
    corners = [(red, green, blue) for red in (0, 1) for green in (0, 1) for blue in (0, 1)]
    grid = b"".join(
        bytes([20 + 70 * (r + g + b), 128 + 30 * (r - g), 128 + 30 * (g - b)])
        for r, g, b in corners
    )
    identity = b"".join(s15(float(row == column)) for row in range(3) for column in range(3))
    table = b"mft1" + bytes(4) + bytes([3, 3, 2, 0]) + identity + 3 * ramp + grid + 3 * ramp
    tags = {b"desc": described("Scanner"), b"wtpt": xyz(0.9642, 1.0, 0.8249), b"A2B0": table}
    profile = bytearray(icc(b"RGB ", tags))
    profile[12:16], profile[20:24] = b"scnr", b"Lab "
    return bytes(profile)
