"""A published image set: its samples in order, each read and checked where the index has it."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datasets.decoding import Pixels, UndecodableImage, decode
from datasets.reading.files import shards_of
from datasets.reading.ranges import Cache, UnreadableRange, read_member
from datasets.sets import EmptySplitError, open_set
from datasets.shards import INDEX
from infra.errors import UserError
from infra.paths import AnyPath

ROW = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("png_offset", pa.int64()),
        ("png_size", pa.int64()),
        ("png_crc32", pa.uint32()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("json_crc32", pa.uint32()),
    ]
)
"""A sample, and where its two members are read; a set of images alone has no place of a JSON. The
checksums are null in sets of an earlier format; every member that has one is compared with it."""
PLACE = ("offset", "size", "crc32")
Row = Mapping[str, Any]
"""A sample as in `ROW`."""


@dataclass(frozen=True, slots=True)
class ImageSample:
    """A sample of an image set."""

    key: str
    """Its key."""
    image: Pixels
    """RGB uint8 [H, W, 3]."""
    label: Mapping[str, Any]
    """Its JSON; see `datasets.sample.sample_json`."""


class ImageSet:
    """The samples of a published image set, or of a part of it, in the order of the shards.

    Args:
        folder: holds the manifest, the index and the shards.
        split: `train` or `val`; None takes both.
        limit: how many samples to take at most, the first ones; None takes all.
        cache: keeps what is read of the shards, where the folder is on slow storage.

    Attributes:
        folder: of the set.
        opened: the set.
        manifest: of the set.
        digest: identity of the set: the SHA-256 of its manifest, which names that of every shard;
            where a split was asked for, also that.
        files: the shards.
        rows: the samples, as in `ROW`.

    Raises:
        UserError: there is no complete image set, or no image of that split.
    """

    def __init__(
        self,
        folder: AnyPath,
        *,
        split: str | None = None,
        limit: int | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.folder = folder
        self.opened = open_set(folder, "image set")
        self.manifest, digest = self.opened.manifest, self.opened.digest
        self.digest = digest if split is None else f"{digest}/{split}"
        self.files = shards_of(self.opened, cache)
        entries = self.manifest["shards"]
        names = [entry["name"] for entry in entries if split in (None, entry["split"])]
        self.rows = _rows(folder / INDEX, self.opened.index(), names).slice(0, limit)
        if not len(self.rows):
            held_out = "; curate with --val-fraction 0.05 to hold images out"
            raise EmptySplitError(
                f"{folder}: no image{f' of split {split!r}' if split else ''} in {INDEX}"
                f"{held_out if split == 'val' else ''}"
            )
        self._columns = {name: self.rows[name].combine_chunks() for name in self.rows.column_names}

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        """Return the key of a sample."""
        key: str = self._columns["key"][index].as_py()
        return key

    def row(self, index: int) -> dict[str, Any]:
        """Return a sample as in `ROW`."""
        return {name: column[index].as_py() for name, column in self._columns.items()}

    def spread(self, count: int) -> list[dict[str, Any]]:
        """Return ``count`` rows evenly spaced over the set, or all of a smaller one."""
        count = min(count, len(self))
        return [self.row(number * len(self) // count) for number in range(count)]

    @functools.cached_property
    def size(self) -> int:
        """Side of the square images in pixels, from the first one's JSON.

        Raises:
            UserError: they are not square.
        """
        label = self.label(self.row(0))
        width, height = label["width"], label["height"]
        if width != height:
            raise UserError(
                f"{self.folder}: images of {width} x {height} pixels; squares are needed, as "
                "python -m pipelines.curate makes them"
            )
        return int(width)

    def pixels(self, index: int) -> Pixels:
        """Read and decode the image of a sample: RGB [H, W, 3].

        Raises:
            UnreadableRange: the shard is missing or damaged; the message names it and the key.
        """
        row = self.row(index)
        return self._decoded(row, self._member(row, "png"))

    def label(self, row: Row) -> dict[str, Any]:
        """Read the JSON of a sample.

        Raises:
            UnreadableRange: as for `pixels`.
        """
        try:
            label: dict[str, Any] = json.loads(self._member(row, "json"))
        except ValueError as error:
            where = f"{row['shard']}: {row['key']}.json"
            raise UnreadableRange(f"{where}: {error}; copy the shard anew") from error
        return label

    def sample(self, row: Row) -> ImageSample:
        """Read a sample and compare it with its own record, and its size with the set's.

        Raises:
            UserError: damaged, or of another size; the message names the key.
        """
        label, png = self.label(row), self._member(row, "png")
        if hashlib.sha256(png).hexdigest() != label["sha256"]:
            raise UserError(
                f"{self.folder / row['shard']}: {row['key']}.png is not what its JSON says; the "
                "image set is damaged: copy the shard anew, or curate again"
            )
        image = self._decoded(row, png)
        if image.shape != (self.size, self.size, 3):
            raise UserError(
                f"{row['key']}: {image.shape[1]} x {image.shape[0]} pixels in a set of "
                f"{self.size} x {self.size}; all latents of a set have one size: curate the images "
                "at one --size"
            )
        return ImageSample(row["key"], image, label)

    def _member(self, row: Row, extension: str) -> bytes:
        name = f"{row['key']}.{extension}"
        place = [row[f"{extension}_{what}"] for what in PLACE]
        if place[0] is None:
            raise UnreadableRange(
                f"{self.folder / INDEX} lists no {name}; make the set with python -m "
                "pipelines.curate, which describes every image in a JSON member"
            )
        return read_member(self.files, row["shard"], name, *place)

    def _decoded(self, row: Row, png: bytes) -> Pixels:
        try:
            return decode(png)
        except UndecodableImage as error:
            where = f"{row['shard']}: {row['key']}.png"
            raise UnreadableRange(f"{where}: {error}; copy the shard anew") from error


def _rows(path: AnyPath, index: pa.Table, shards: Sequence[str]) -> pa.Table:
    """Return the samples of some shards from the index of an image set, as in `ROW`."""
    if "crc32" not in index.column_names:
        index = index.append_column("crc32", pa.nulls(len(index), pa.uint32()))
    index = index.filter(pc.is_in(index["shard"].cast(pa.string()), pa.array(shards, pa.string())))
    extension = index["extension"].cast(pa.string())
    png, label = (index.filter(pc.equal(extension, name)) for name in ("png", "json"))
    if not len(label):
        missing = pa.nulls(len(png), pa.int64())
        label = pa.table([png["key"], *[missing] * len(PLACE)], ["key", *PLACE])
    if not png["key"].equals(label["key"]):
        raise UserError(f"{path} does not list png and json of every sample; copy the set anew")
    places = [table[column] for table in (png, label) for column in PLACE]
    columns = [png["key"], png["shard"].cast(pa.string()), *places]
    return pa.table([c.cast(f.type) for c, f in zip(columns, ROW, strict=True)], schema=ROW)
