"""The schemas of a candidate's row and of a sample's JSON.

One row of `scores.parquet` is one candidate patch, kept or dropped; an image that gave no patch
(broken, too small) has one row too, with its reason and no crop. A sample is a kept candidate
inside a shard: `KEY.png` and `KEY.json` side by side.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from infra.config import canonical_json

CANDIDATE = pa.schema(
    [
        ("key", pa.string()),  # of the sample; of the image where there is no patch
        ("source", pa.string()),  # key of the image
        ("origin", pa.string()),  # the input it came from
        ("file", pa.string()),  # name inside that input, as text; a byte that is no UTF-8 as \xNN
        ("index", pa.int32()),  # number of the patch in its image, from 1; 0: no patch
        ("x", pa.int32()),  # crop box in pixels of the upright image
        ("y", pa.int32()),
        ("w", pa.int32()),
        ("h", pa.int32()),
        ("image_width", pa.int32()),
        ("image_height", pa.int32()),
        ("source_bytes", pa.int64()),
        ("source_sha256", pa.string()),
        ("source_phash", pa.string()),  # what it looks like, see datasets.fingerprint
        ("icc", pa.string()),  # what its colour profile calls itself; null: it has none
        ("quality", pa.float64()),  # on the scorer's own scale; null: not scored
        ("detail", pa.string()),  # what else the scorer says, as JSON
        ("drop_reason", pa.string()),  # null: nothing against it so far
    ]
)
"""A candidate as scoring leaves it. Selection fills ``drop_reason`` and adds `PLACEMENT`."""

PLACEMENT = [
    ("group", pa.string()),  # the first key among the copies of the image, copies of copies too
    ("match", pa.string()),  # of what it is a copy, where it was dropped for that
    ("split", pa.string()),
    ("shard", pa.string()),
]
SCORES = pa.schema([*CANDIDATE, *PLACEMENT])
"""A candidate with its place: the columns of `scores.parquet`; no split for dropped ones."""


def empty_row(**values: Any) -> dict[str, Any]:
    """Make a candidate row in which every column but those given is null.

    Raises:
        KeyError: a name that is no column.
    """
    unknown = values.keys() - set(CANDIDATE.names)
    if unknown:
        raise KeyError(f"no columns {sorted(unknown)}; the columns are {CANDIDATE.names}")
    return {name: values.get(name) for name in CANDIDATE.names}


def sample_json(row: Mapping[str, Any], *, size: int, scorer: str, png_sha256: str) -> bytes:
    """Encode a sample's JSON member.

    Args:
        row: a candidate, as in `SCORES`.
        size: side of the sample in pixels.
        scorer: name of the scorer that gave ``quality``.
        png_sha256: hash of the PNG member's bytes.
    """
    return canonical_json(
        {
            "key": row["key"],
            "source": row["source"],
            "origin": row["origin"],
            "crop": [row["x"], row["y"], row["w"], row["h"]],
            "width": size,
            "height": size,
            "sha256": png_sha256,
            "source_sha256": row["source_sha256"],
            "icc": row["icc"],
            "quality": row["quality"],
            "scorer": scorer,
            "drop_reason": row["drop_reason"],
        }
    )
