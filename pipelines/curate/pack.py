"""Packing of kept candidates: their PNGs, which scoring made or which are made now, as shards."""

import dataclasses
import hashlib
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import pyarrow as pa

from datasets.decoding import Pixels, decode, encode_png, single_threaded
from datasets.fetching import Fetch, read_ahead
from datasets.sample import SCORES, sample_json
from datasets.shards import save_record, write_shard
from datasets.sources import ImageRef, read
from datasets.unusable import UnusableImage
from infra.errors import UserError
from infra.paths import AnyPath, path_of
from pipelines.curate.config import CropRule
from pipelines.curate.crop import Box, cut
from pipelines.curate.kept import PLACE, KeptReader, with_places
from pipelines.jobs.attempts import Attempt, attempt
from pipelines.jobs.plan import Plan, record_path
from pipelines.jobs.stage import Stopwatch

LOCATED = pa.schema(
    [
        *SCORES,
        ("path", pa.binary()),  # as the file system has it, which need not be UTF-8
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("stamp", pa.int64()),
        ("seek_index", pa.binary()),
        *PLACE,
    ]
)
"""A kept candidate, its place in the set, and where its image or its PNG is read: a plan's row."""


class PackShard:
    """The worker that writes one shard of the plan.

    A shard is done when its record exists and its tar has the recorded length; a repeated unit
    writes the same bytes. An image that has killed its worker twice ends the unit without a
    shard, by a result that names it.

    Args:
        plan: path of the plan.
        rule: how an image becomes patches.
        scorer: name of the scorer that gave the scores.
        max_pixels: the limit of the run.
        notes: folder of the notes on units under way, and name of the job that runs
            (`pipelines.jobs.attempts`).
        kept: folder of the PNGs that scoring made.
    """

    def __init__(
        self,
        plan: str,
        rule: CropRule,
        scorer: str,
        max_pixels: int,
        notes: tuple[str, str],
        kept: str,
    ) -> None:
        single_threaded()
        self.plan = Plan(path_of(plan))
        self.rule = rule
        self.scorer = scorer
        self.max_pixels = max_pixels
        self.notes = notes
        self.kept = KeptReader(path_of(kept))
        self.watch = Stopwatch()
        self._image: tuple[str, Pixels] | None = None

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Write shard ``unit["name"]`` from row group ``unit["row_group"]`` beside the plan."""
        path, rows = self.plan.of(unit)
        folder, session = self.notes
        with attempt(path_of(folder), f"{path.parent.name}-{path.name}", session) as under_way:
            for source in dict.fromkeys(row["source"] for row in rows):
                if under_way.has_killed(source):
                    return {"done": 0, "seconds": self.watch.take(), "crashed": source}
            samples = self.watch.between("write", self.samples(rows, under_way))
            with closing(self.kept), closing(_Reading(rows)) as self._reading:
                shard = write_shard(path, samples)
            save_record(record_path(path), shard)
        return {"done": shard.samples, "seconds": self.watch.take()}

    def samples(
        self, rows: list[dict[str, Any]], under_way: Attempt
    ) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield the rows' samples; an image is decoded at most once for rows that follow."""
        for row in rows:
            with under_way.doing(row["source"]):
                members = self._members(row)
            yield row["key"], members

    def _members(self, row: dict[str, Any]) -> dict[str, bytes]:
        with self.watch("read"):
            png, digest = self.kept.read(row), row["png_sha256"]
        if png is None:
            png = self._made(row)
            digest = hashlib.sha256(png).hexdigest()
        label = sample_json(row, size=self.rule.size, scorer=self.scorer, png_sha256=digest)
        return {"png": png, "json": label}

    def _made(self, row: dict[str, Any]) -> bytes:
        """Make a patch's PNG from its image."""
        image = self._decoded(row)
        with self.watch("encode"):
            box = Box(row["x"], row["y"], row["w"], row["h"])
            return encode_png(cut(image, box, self.rule))

    def _decoded(self, row: dict[str, Any]) -> Pixels:
        if self._image is None or self._image[0] != row["source"]:
            ref = _place(row)
            try:
                self._image = (ref.key, self._read(row, ref))
            except UnusableImage as error:
                raise UserError(
                    f"{ref.path}: image {ref.key} cannot be read as it was scored ({error}); run "
                    "the same command again"
                ) from error
        return self._image[1]

    def _read(self, row: dict[str, Any], ref: ImageRef) -> Pixels:
        with self.watch("read"):
            data = self._reading.fetch(row)()
            changed = hashlib.sha256(data).hexdigest() != row["source_sha256"]
        if changed:
            raise UserError(
                f"{ref.path}: image {ref.key} has changed since it was scored; run the same "
                "command again to score it anew"
            )
        with self.watch("decode"):
            return decode(data, self.max_pixels)


class _Reading:
    """The images of a unit that have to be decoded, read ahead of the rows that need them.

    Args:
        rows: of `LOCATED`.
    """

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows
        self._passed = set[str]()
        self._images: Generator[tuple[ImageRef, Fetch], None, None] | None = None

    def fetch(self, row: dict[str, Any]) -> Fetch:
        """Return what gives the bytes of a row's image; rows come in order."""
        if row["source"] in self._passed:  # other images lie between two rows of one image
            return partial(read, _place(row))
        if self._images is None:  # nothing before this row had to be read
            rest = {other["source"]: other for other in self._rows[self._rows.index(row) :]}
            self._images = read_ahead(_place(other) for other in rest.values())
        for ref, fetch in self._images:
            self._passed.add(ref.key)
            if ref.key == row["source"]:
                return fetch
        raise KeyError(row["source"])

    def close(self) -> None:
        """Read no more."""
        if self._images is not None:
            self._images.close()


def located(table: pa.Table, refs: Mapping[str, ImageRef], kept: AnyPath) -> pa.Table:
    """Add to the rows of all shards the columns of `LOCATED`: where image and PNG are read."""
    places = [dataclasses.asdict(refs[source]) for source in table["source"].to_pylist()]
    for field in list(LOCATED)[len(table.schema.names) : -len(PLACE)]:
        values = [place[field.name] for place in places]
        if pa.types.is_binary(field.type):
            values = [None if value is None else os.fsencode(value) for value in values]
        table = table.append_column(field.name, pa.array(values, field.type))
    return with_places(table, kept)


def _place(row: Mapping[str, Any]) -> ImageRef:
    """Return where the image of a row of `LOCATED` is read."""
    names = (field.name for field in dataclasses.fields(ImageRef))
    fields = {name: row[name] for name in names if name in row}
    for name in ("path", "seek_index"):
        fields[name] = row[name] and os.fsdecode(row[name])
    return ImageRef(**(fields | {"key": row["source"]}))
