"""A published image set: its samples in order, each read and checked where the index has it."""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datasets.decoding import Pixels, UndecodableImage, decode
from datasets.reading.files import shards_of
from datasets.reading.ranges import Cache, Place, UnreadableRange, read_members, readable
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
        (found,) = self.many_pixels([index])
        return readable(found)

    def many_pixels(self, indices: Iterable[int]) -> Iterator[Pixels | UnreadableRange]:
        """Yield the images of samples as `pixels` returns them, or why one is unreadable.

        All are asked for at once, and decoded one by one.
        """
        rows = [self.row(index) for index in indices]
        for row, png in zip(rows, self._members(rows, ["png"]), strict=True):
            yield png if isinstance(png, UnreadableRange) else _decoded(row, png)

    def label(self, row: Row) -> dict[str, Any]:
        """Read the JSON of a sample.

        Raises:
            UnreadableRange: as for `pixels`.
        """
        (label,) = self.labels([row])
        return label

    def labels(self, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
        """Yield the JSONs of samples, which are asked for at once.

        Raises:
            UnreadableRange: as for `pixels`.
        """
        for row, label in zip(rows, self._members(rows, ["json"]), strict=True):
            yield _parsed(row, readable(label))

    def sample(self, row: Row) -> ImageSample:
        """Read a sample and compare it with its own record, and its size with the set's.

        Raises:
            UserError: damaged, or of another size; the message names the key.
        """
        (sample,) = self.samples([row])
        return sample

    def samples(self, rows: Sequence[Row]) -> Iterator[ImageSample]:
        """Yield samples as `sample` returns them; all are asked for at once.

        Raises:
            UserError: as for `sample`.
        """
        members = self._members(rows, ["json", "png"])
        for row, label, png in zip(rows, members, members, strict=True):
            yield self._sample(row, _parsed(row, readable(label)), readable(png))

    def _sample(self, row: Row, label: Mapping[str, Any], png: bytes) -> ImageSample:
        if hashlib.sha256(png).hexdigest() != label["sha256"]:
            raise UserError(
                f"{self.folder / row['shard']}: {row['key']}.png is not what its JSON says; the "
                "image set is damaged: copy the shard anew, or curate again"
            )
        image = readable(_decoded(row, png))
        if image.shape != (self.size, self.size, 3):
            raise UserError(
                f"{row['key']}: {image.shape[1]} x {image.shape[0]} pixels in a set of "
                f"{self.size} x {self.size}; all latents of a set have one size: curate the images "
                "at one --size"
            )
        return ImageSample(row["key"], image, label)

    def _members(
        self, rows: Sequence[Row], extensions: Sequence[str]
    ) -> Iterator[bytes | UnreadableRange]:
        """Yield the members of samples, of each in the order of ``extensions``."""
        wanted = [(row, extension) for row in rows for extension in extensions]
        places = [_place(row, extension) for row, extension in wanted]
        found = read_members(self.files, [place for place in places if place is not None])
        for (row, extension), place in zip(wanted, places, strict=True):
            yield self._unlisted(row, extension) if place is None else next(found)

    def _unlisted(self, row: Row, extension: str) -> UnreadableRange:
        return UnreadableRange(
            f"{self.folder / INDEX} lists no {row['key']}.{extension}; make the set with python -m "
            "pipelines.curate, which describes every image in a JSON member"
        )


def _decoded(row: Row, png: bytes) -> Pixels | UnreadableRange:
    try:
        return decode(png)
    except UndecodableImage as error:
        where = f"{row['shard']}: {row['key']}.png"
        return UnreadableRange(f"{where}: {error}; copy the shard anew")


def _place(row: Row, extension: str) -> Place | None:
    """Return where a member of a sample is; None if the sample has no such member."""
    offset, size, crc32 = (row[f"{extension}_{what}"] for what in PLACE)
    if offset is None:
        return None
    return Place(row["shard"], f"{row['key']}.{extension}", offset, size, crc32)


def _parsed(row: Row, content: bytes) -> dict[str, Any]:
    try:
        label: dict[str, Any] = json.loads(content)
    except ValueError as error:
        where = f"{row['shard']}: {row['key']}.json"
        raise UnreadableRange(f"{where}: {error}; copy the shard anew") from error
    return label


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
