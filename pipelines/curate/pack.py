"""Packing of kept candidates: their images are decoded, cut, encoded as PNG, written as shards."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from datasets.decoding import Pixels, decode, encode_png, single_threaded
from datasets.sample import SCORES, sample_json
from datasets.shards import save_record, write_shard
from datasets.sources import ImageRef, read
from infra.errors import UserError
from pipelines.curate.config import CropRule
from pipelines.curate.crop import Box, cut
from pipelines.jobs.attempts import Attempt, attempt
from pipelines.jobs.plan import planned, record_path
from pipelines.jobs.stage import Stopwatch

LOCATED = pa.schema(
    [
        *SCORES,
        ("path", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("stamp", pa.int64()),
        ("seek_index", pa.string()),
    ]
)
"""A kept candidate, its place in the set, and where its image is read: a row of the plan."""


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
    """

    def __init__(
        self, plan: str, rule: CropRule, scorer: str, max_pixels: int, notes: tuple[str, str]
    ) -> None:
        single_threaded()
        self.plan = Path(plan)
        self.rule = rule
        self.scorer = scorer
        self.max_pixels = max_pixels
        self.notes = notes
        self.watch = Stopwatch()
        self._image: tuple[str, Pixels] | None = None

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Write shard ``unit["name"]`` from row group ``unit["row_group"]`` beside the plan."""
        path, rows = planned(self.plan, unit)
        folder, session = self.notes
        with attempt(Path(folder), f"{path.parent.name}-{path.name}", session) as under_way:
            for source in dict.fromkeys(row["source"] for row in rows):
                if under_way.has_killed(source):
                    return {"done": 0, "seconds": self.watch.take(), "crashed": source}
            samples = self.watch.between("write", self.samples(rows, under_way))
            shard = write_shard(path, samples)
            save_record(record_path(path), shard)
        return {"done": shard.samples, "seconds": self.watch.take()}

    def samples(
        self, rows: list[dict[str, Any]], under_way: Attempt
    ) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield the rows' samples; an image is decoded once for successive rows of its patches."""
        for row in rows:
            with under_way.doing(row["source"]):
                members = self._members(row)
            yield row["key"], members

    def _members(self, row: dict[str, Any]) -> dict[str, bytes]:
        image = self._decoded(row)
        with self.watch("encode"):
            box = Box(row["x"], row["y"], row["w"], row["h"])
            png = encode_png(cut(image, box, self.rule))
            label = sample_json(
                row,
                size=self.rule.size,
                scorer=self.scorer,
                png_sha256=hashlib.sha256(png).hexdigest(),
            )
        return {"png": png, "json": label}

    def _decoded(self, row: dict[str, Any]) -> Pixels:
        if self._image is None or self._image[0] != row["source"]:
            fields = ("origin", "path", "member", "offset", "size", "stamp", "seek_index")
            ref = ImageRef(key=row["source"], **{name: row[name] for name in fields})
            with self.watch("read"):
                data = read(ref)
                changed = hashlib.sha256(data).hexdigest() != row["source_sha256"]
            if changed:
                raise UserError(
                    f"{ref.path}: image {ref.key} has changed since it was scored; run the same "
                    "command again to score it anew"
                )
            with self.watch("decode"):
                self._image = (ref.key, decode(data, self.max_pixels))
        return self._image[1]
