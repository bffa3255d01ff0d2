"""What a restored picture leaves in the output folder.

OUT/KEY.png             the restored picture; how it was made stands in its text
OUT/KEY.sample-1.png    further restorations, with --samples
OUT/KEY.posterior-mean.png      what the flow began with, with --keep-posterior-mean
OUT/KEY.spread.png      how much they differ, in the colours of `models.spread`
OUT/KEY.json            how it was made, and what is known of each face; written last

A key has no dot, so that KEY. begins the names of its own files and of no others.
"""

import re
from collections.abc import Iterable, Mapping, Set
from typing import Any

from datasets.decoding import Pixels
from datasets.png import png as encoded
from datasets.png import text_chunks
from infra.config import pretty_json
from infra.paths import AnyPath, write_bytes

SOFTWARE = "latent-pmrf"
POSTERIOR_MEAN = "posterior-mean"
OURS = re.compile(
    r"(?P<key>[^.]+)(\.sample-\d+|\.posterior-mean|\.spread|\.layers/[^/]+)?\.(?P<extension>png|json)"
)
"""What a job names its files."""


def png(pixels: Pixels, text: Mapping[str, str]) -> bytes:
    """Encode RGB uint8 [H, W, 3] as PNG with text; the same arguments give the same bytes."""
    return encoded(pixels, chunks=text_chunks(text))


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


def is_first_restoration(name: str) -> bool:
    """Tell whether a job gives this name to a restored picture, and not to what lies beside it."""
    match = OURS.fullmatch(name)
    return match is None or (match[2] is None and match["extension"] == "png")
