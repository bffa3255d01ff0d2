"""An image set as encoding reads it: its samples in order, and which of them make which shard."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.decoding import Pixels, UndecodableImage, decode
from datasets.shards import INDEX, MANIFEST, read_manifest, shard_name
from infra.errors import UsageError, UserError
from infra.storage import sha256

PLAN = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),  # of the image set
        ("png_offset", pa.int64()),
        ("png_size", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
    ]
)
"""An image sample and where it is read; a row group of the plan is a latent shard."""


@dataclass(frozen=True, slots=True)
class ImageSample:
    """A sample of the image set."""

    key: str
    image: Pixels
    """RGB uint8 [H, W, 3]."""
    label: Mapping[str, Any]
    """Its JSON."""


class ImageSet:
    """A published image set, or its first samples.

    Args:
        folder: of the set.
        limit: samples to take at most, in the order of the shards.

    Attributes:
        digest: SHA-256 of the manifest, which names the SHA-256 of every shard.
        rows: the samples, as in `PLAN`.
        size: side of the images in pixels.

    Raises:
        UsageError: no complete image set, or one of images that are not square.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        manifest = read_manifest(folder)
        if manifest is None:
            raise UsageError(
                f"--input {folder}: no complete image set here (no {MANIFEST}); make one with "
                "python -m pipelines.curate"
            )
        lost = [e["name"] for e in manifest["shards"] if not (folder / e["name"]).is_file()]
        if lost:
            raise UsageError(
                f"--input {folder}: {len(lost)} shards of the manifest are missing, first "
                f"{lost[0]}; copy them again, or curate again"
            )
        self.digest = sha256(folder / MANIFEST)
        self.rows = _rows(pq.read_table(folder / INDEX), folder).slice(0, limit)
        first = read_label(folder, self.rows.slice(0, 1).to_pylist()[0])
        self.size = first["width"]
        if first["height"] != self.size:
            raise UsageError(
                f"--input {folder}: images of {first['width']} x {first['height']} pixels; "
                "encoding takes squares, as python -m pipelines.curate makes them"
            )

    def shards(self, per_shard: int, taken: Mapping[str, int]) -> dict[str, pa.Table]:
        """Cut the samples into latent shards.

        Args:
            per_shard: samples in a shard; only the last of a split has fewer.
            taken: shards that each split has already; numbers go on from there.

        Returns:
            {name: rows of the plan}, in the order of the samples.
        """
        splits = pc.replace_substring_regex(self.rows["shard"], r"-[0-9]+\.tar$", "")
        tables = {}
        for split in pc.unique(splits).to_pylist():
            rows = self.rows.filter(pc.equal(splits, split))
            for number in range(-(-len(rows) // per_shard)):
                name = shard_name(split, taken.get(split, 0) + number)
                tables[name] = rows.slice(number * per_shard, per_shard)
        return tables

    def spread(self, count: int) -> list[dict[str, Any]]:
        """Return ``count`` rows evenly spaced over the set, or all of a smaller one."""
        count = min(count, len(self.rows))
        return [
            row
            for i in range(count)
            for row in self.rows.slice(i * len(self.rows) // count, 1).to_pylist()
        ]

    def sample(self, row: Mapping[str, Any]) -> ImageSample:
        """Read one sample; see `read_sample`."""
        return read_sample(self.folder, row, self.size)


def _rows(index: pa.Table, folder: Path) -> pa.Table:
    """Turn the index of an image set into rows of `PLAN`."""
    extension = index["extension"].cast(pa.string())
    png, label = (index.filter(pc.equal(extension, name)) for name in ("png", "json"))
    if not len(png) or not png["key"].equals(label["key"]):
        raise UsageError(f"--input {folder}: {INDEX} does not list png and json of every sample")
    columns = [
        png["key"],
        png["shard"].cast(pa.string()),
        *(table[column] for table in (png, label) for column in ("offset", "size")),
    ]
    return pa.table(columns, schema=PLAN)


def read_label(folder: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """Read the JSON of one sample."""
    with (folder / row["shard"]).open("rb") as tar:
        tar.seek(row["json_offset"])
        label: dict[str, Any] = json.loads(tar.read(row["json_size"]))
    return label


def read_sample(folder: Path, row: Mapping[str, Any], size: int) -> ImageSample:
    """Read one sample and compare it with its own record.

    Args:
        folder: of the set.
        row: as in `PLAN`.
        size: the side it must have.

    Raises:
        UserError: damaged, or of another size; the message names the key.
    """
    key, path = row["key"], folder / row["shard"]
    label = read_label(folder, row)
    with path.open("rb") as tar:
        tar.seek(row["png_offset"])
        png = tar.read(row["png_size"])
    if hashlib.sha256(png).hexdigest() != label["sha256"]:
        raise UserError(
            f"{path}: {key}.png is not what its JSON says; the image set is damaged: copy the "
            "shard anew, or curate again"
        )
    try:
        image = decode(png)
    except UndecodableImage as error:
        raise UserError(f"{path}: {key}.png: {error}; curate again") from error
    if image.shape != (size, size, 3):
        raise UserError(
            f"{key}: {image.shape[1]} x {image.shape[0]} pixels in a set of {size} x {size}; all "
            "latents of a set have one size: curate the images at one --size"
        )
    return ImageSample(key, image, label)
