"""A picture as metrics take it: RGB of 8 bits, and what its file was beside that.

Metrics of published tables read PNG files of RGB. What else a file is, grey or JPEG or of 16
bits, is decoded by the rules of `datasets.decoding`, counted and said: FID of JPEG files differs
from that of PNG files of the same pictures.
"""

import hashlib
from dataclasses import dataclass

from datasets.decoding import Pixels, decode, opened_image

GREY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I")
DEEP = ("I;16", "I;16B", "I;16L", "I")


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture and the kind of its file."""

    pixels: Pixels
    """RGB uint8 [H, W, 3]."""
    notes: tuple[str, ...]
    """Of grey, 16 bits, ICC profile, and the format where it is not PNG."""

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def sha256(self) -> str:
        """Hash the levels, row by row."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()


def decoded(data: bytes) -> Decoded:
    """Decode a picture.

    Args:
        data: the whole file.

    Raises:
        UnusableImage: it cannot be decoded, or has transparent pixels.
    """
    with opened_image(data) as image:
        kinds = {
            f"{image.format}": image.format != "PNG",
            "grey": image.mode in GREY,
            "16 bits": image.mode in DEEP,
            "ICC profile": bool(image.info.get("icc_profile")),
        }
    return Decoded(decode(data), tuple(kind for kind, is_so in kinds.items() if is_so))
