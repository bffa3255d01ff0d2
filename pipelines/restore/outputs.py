"""What a restored picture leaves in the output folder.

OUT/KEY.png             the restored picture; how it was made stands in its text
OUT/KEY.sample-1.png    further restorations, with --samples
OUT/KEY.spread.png      how much they differ, in the colours of `models.spread`
OUT/KEY.json            how it was made, and what is known of each face; written last

A key has no dot, so that KEY. begins the names of its own files and of no others.
"""

import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Set
from typing import Any

from datasets.decoding import Pixels, encode_png
from infra.config import pretty_json
from infra.paths import AnyPath, write_bytes

SOFTWARE = "latent-pmrf"
HEADER = 33  # bytes of a PNG before its second chunk
OURS = re.compile(r"(?P<key>[^.]+)(\.sample-\d+|\.spread|\.layers/[^/]+)?\.(png|json)")
"""What a job names its files."""


def png(pixels: Pixels, text: Mapping[str, str]) -> bytes:
    """Encode RGB uint8 [H, W, 3] as PNG with text; the same arguments give the same bytes."""
    data = encode_png(pixels)
    chunks = b"".join(_text_chunk(f"{name}\0{value}") for name, value in text.items())
    return data[:HEADER] + chunks + data[HEADER:]


def _text_chunk(text: str) -> bytes:
    """Return a tEXt chunk (PNG, section 11.3.3.2): length, type, content, CRC-32 of these two."""
    content = b"tEXt" + text.encode("latin-1")
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def text_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the text that a restored PNG carries: the program, and what the picture depends on."""
    return {"Software": SOFTWARE, **{f"{SOFTWARE}:{k}": str(v) for k, v in settings.items()}}


def write_outputs(
    folder: AnyPath, key: str, pictures: Mapping[str, bytes], made: Mapping[str, Any]
) -> list[str]:
    """Write the files of a picture, each whole or not at all.

    Args:
        folder: the output folder.
        key: of the picture.
        pictures: PNG files by what follows the key in their names: "" for the restored one.
        made: for the JSON.

    Returns:
        The names of the files.
    """
    names = {f"{key}{'.' if what else ''}{what}.png": data for what, data in pictures.items()}
    for name, data in names.items():
        write_bytes(folder / name, data)
    write_bytes(folder / f"{key}.json", pretty_json(dict(made)))
    return [*names, f"{key}.json"]


def of_keys(names: Iterable[str], keys: Set[str]) -> list[str]:
    """Return those names of files that a job gives to the outputs of these pictures."""
    found = ((name, OURS.fullmatch(name)) for name in names)
    return [name for name, match in found if match and match["key"] in keys]
