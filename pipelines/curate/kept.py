"""PNGs that scoring makes while an image is decoded, so that packing need not decode it again.

    FOLDER/UNIT.pngs       the PNGs of the patches that are good enough, one after the other
    FOLDER/UNIT.parquet    where each is: rows of `KEPT`

They are a cache. A PNG that is not there, or not whole, is made from its image as if there were no
cache; so nothing here needs to be flushed, and a disk that is nearly full does without.
"""

import hashlib
import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.decoding import Pixels, encode_png
from infra.paths import AnyPath, glob
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
        self._path = Path(keeping.folder, f"{unit}.pngs")
        self._rows: list[dict[str, Any]] = []
        self._end = 0
        self._open = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            usage = shutil.disk_usage(self._path.parent)
            self._is_on = usage.free > LEAST_FREE * usage.total
            self._file = self._open.enter_context(self._path.open("wb"))
        except OSError:
            self._is_on = False
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the disk is full: packing makes these PNGs
            self._open.close()
            if self._rows:
                table = pa.Table.from_pylist(self._rows, schema=KEPT)
                pq.write_table(table, self._path.with_suffix(".parquet"))

    def add(self, row: dict[str, Any], patch: Pixels) -> None:
        """Encode a scored patch, if it is good enough and there is room."""
        if not self._is_on or drop_reason(row, self._filters) is not None:
            return
        png = encode_png(patch)
        try:
            self._file.write(png)
        except OSError:
            self._is_on = False
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
    kept = pa.concat_tables([KEPT.empty_table(), *map(_read, glob(folder, "*.parquet"))])
    places = {(r.pop("key"), r.pop("source_sha256")): r for r in kept.to_pylist()}
    wanted = zip(table["key"].to_pylist(), table["source_sha256"].to_pylist(), strict=True)
    found = [places.get(image, dict.fromkeys(names)) for image in wanted]
    columns = pa.Table.from_pylist(found, schema=pa.schema(PLACE))
    for name in names:
        table = table.append_column(name, columns[name])
    return table


def _read(path: AnyPath) -> pa.Table:
    try:
        return pq.read_table(path, schema=KEPT)
    except (pa.ArrowException, OSError):  # cut off by a kill
        return KEPT.empty_table()


def read_png(folder: AnyPath, row: dict[str, Any]) -> bytes | None:
    """Read a candidate's PNG; None if it is not in the cache, or has not the recorded SHA-256.

    Args:
        folder: of the cache.
        row: with the columns of `PLACE`.
    """
    if row["png_file"] is None:
        return None
    try:
        with (folder / row["png_file"]).open("rb") as file:
            file.seek(row["png_offset"])
            data = file.read(row["png_size"])
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == row["png_sha256"] else None
