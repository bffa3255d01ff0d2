"""PNGs that scoring makes while an image is decoded, so that packing need not decode it again.

    FOLDER/UNIT.pngs       the PNGs of the patches that are good enough, one after the other
    FOLDER/UNIT.parquet    where each is: rows of `KEPT`

They are a cache. A PNG that is not there, or not whole, is made from its image as if there were no
cache; so nothing here needs to be flushed, and a disk that is nearly full does without.

In a bucket they pay too. To make a PNG of 512 pixels again takes 40 ms of a processor (decoding is
shared by an image's patches) and its part of another read of the image. To fetch it takes 0.4 MB,
and the PNGs of a shard follow one another: requests of `READ` bytes bring twenty, in 30 ms from far
away and 100 ms at 85 MB/s, 7 ms for each. The bucket holds the set's bytes twice for that time.
"""

import hashlib
import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.decoding import Pixels, encode_png
from datasets.shards import parquet_bytes
from infra.paths import AnyPath, glob, opened, path_of, read_all, write_bytes, written_in_place
from pipelines.curate.filters import drop_reason, score_filters

PLACE = [
    ("png_file", pa.string()),
    ("png_offset", pa.int64()),
    ("png_size", pa.int64()),
    ("png_sha256", pa.string()),
]
"""Columns that say where a PNG is; null where there is none."""
KEPT = pa.schema([("key", pa.string()), ("source_sha256", pa.string()), *PLACE])
"""A PNG in the cache: of which candidate, made from which file, and where it is."""
LEAST_FREE = 0.1  # of the disk; with less, nothing is kept: the shards need the room
READ = 8 << 20  # bytes of PNGs that a bucket is asked for at a time


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is kept, and where."""

    folder: str
    """The folder of the cache."""
    threshold: float | None
    """Of the set; None keeps every patch."""
    higher_is_better: bool
    """Direction of the scores."""


class KeptUnit:
    """The PNGs of one unit of scoring, written inside a `with` block.

    Args:
        keeping: what is kept and where.
        unit: name of the unit.
    """

    def __init__(self, keeping: Keeping, unit: str) -> None:
        self._filters = score_filters(keeping.threshold, higher_is_better=keeping.higher_is_better)
        self._path = path_of(keeping.folder) / f"{unit}.pngs"
        self._rows: list[dict[str, Any]] = []
        self._end = 0
        self._file: BinaryIO | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with suppress(OSError):
            local = self._open.enter_context(written_in_place(self._path))
            usage = shutil.disk_usage(local.parent)
            if usage.free > LEAST_FREE * usage.total:
                self._file = self._open.enter_context(local.open("wb"))
        return self

    def __exit__(self, *error: Any) -> None:
        with suppress(OSError):  # the disk is full: packing makes these PNGs
            self._open.__exit__(*error)
            if self._rows and error[0] is None:
                table = pa.Table.from_pylist(self._rows, schema=KEPT)
                write_bytes(self._path.with_suffix(".parquet"), parquet_bytes(table))

    def add(self, row: dict[str, Any], patch: Pixels) -> None:
        """Encode a scored patch, if it is good enough and there is room."""
        if self._file is None or drop_reason(row, self._filters) is not None:
            return
        png = encode_png(patch)
        try:
            self._file.write(png)
        except OSError:
            self._file = None
            return
        place = (self._path.name, self._end, len(png), hashlib.sha256(png).hexdigest())
        names = [name for name, _ in PLACE]
        about = {"key": row["key"], "source_sha256": row["source_sha256"]}
        self._rows.append(about | dict(zip(names, place, strict=True)))
        self._end += len(png)


def with_places(table: pa.Table, folder: AnyPath) -> pa.Table:
    """Add the columns of `PLACE` to candidates.

    Args:
        table: with the columns ``key`` and ``source_sha256``.
        folder: of the cache.
    """
    names = [name for name, _ in PLACE]
    kept = pa.concat_tables(
        [KEPT.empty_table(), *map(_parsed, read_all(glob(folder, "*.parquet")))]
    )
    places = {(r.pop("key"), r.pop("source_sha256")): r for r in kept.to_pylist()}
    wanted = zip(table["key"].to_pylist(), table["source_sha256"].to_pylist(), strict=True)
    found = [places.get(image, dict.fromkeys(names)) for image in wanted]
    columns = pa.Table.from_pylist(found, schema=pa.schema(PLACE))
    for name in names:
        table = table.append_column(name, columns[name])
    return table


def _parsed(table: bytes) -> pa.Table:
    try:
        return pq.read_table(pa.BufferReader(table), schema=KEPT)
    except pa.ArrowException:  # damaged: there is no cache then
        return KEPT.empty_table()


class KeptReader:
    """Reads PNGs of the cache, one file of it open at a time.

    Args:
        folder: of the cache.
    """

    def __init__(self, folder: AnyPath) -> None:
        self._folder = folder
        self._name: str | None = None
        self._file: BinaryIO | None = None

    def read(self, row: dict[str, Any]) -> bytes | None:
        """Read a candidate's PNG; None if it is not in the cache, or has not the recorded SHA-256.

        Args:
            row: with the columns of `PLACE`.
        """
        if row["png_file"] is None:
            return None
        try:
            file = self._opened(row["png_file"])
            file.seek(row["png_offset"])
            data = file.read(row["png_size"])
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == row["png_sha256"] else None

    def _opened(self, name: str) -> BinaryIO:
        """Open a file, or go on with it: neighbours in a shard are neighbours in the cache."""
        if self._file is None or name != self._name:
            self.close()
            self._file, self._name = opened(self._folder / name, READ), name
        return self._file

    def close(self) -> None:
        """Close the open file, if there is one."""
        if self._file is not None:
            self._file.close()
        self._file = None
