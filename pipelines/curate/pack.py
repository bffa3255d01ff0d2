"""Packing of kept candidates: their PNGs, which scoring made or which are made now, as shards."""

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
from pipelines.curate.kept import PLACE, read_png
from pipelines.jobs.plan import planned, record_path
from pipelines.jobs.stage import Stopwatch

IMAGE_PLACE = [
    ("path", pa.string()),
    ("member", pa.string()),
    ("offset", pa.int64()),
    ("size", pa.int64()),
    ("stamp", pa.int64()),
    ("seek_index", pa.string()),
]
"""Where the image of a candidate is read."""
LOCATED = pa.schema([*SCORES, *IMAGE_PLACE, *PLACE])
"""A kept candidate, its place in the set, and where its image or its PNG is read: a plan's row."""


class PackShard:
    """The worker that writes one shard of the plan.

    A shard is done when its record exists and its tar has the recorded length; a repeated unit
    writes the same bytes.
    """

    def __init__(self, plan: str, rule: CropRule, scorer: str, max_pixels: int, kept: str) -> None:
        single_threaded()
        self.plan = Path(plan)
        self.rule = rule
        self.scorer = scorer
        self.max_pixels = max_pixels
        self.kept = Path(kept)
        self.watch = Stopwatch()
        self._image: tuple[str, Pixels] | None = None

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Write shard ``unit["name"]`` from row group ``unit["row_group"]`` beside the plan."""
        path, rows = planned(self.plan, unit)
        samples = self.watch.between("write", self.samples(rows))
        shard = write_shard(path, samples)
        save_record(record_path(path), shard)
        return {"done": shard.samples, "seconds": self.watch.take()}

    def samples(self, rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield the rows' samples; an image is decoded at most once for rows that follow."""
        for row in rows:
            with self.watch("read"):
                png = read_png(self.kept, row)
            digest = row["png_sha256"]
            if png is None:
                png = self._made(row)
                digest = hashlib.sha256(png).hexdigest()
            label = sample_json(row, size=self.rule.size, scorer=self.scorer, png_sha256=digest)
            yield row["key"], {"png": png, "json": label}

    def _made(self, row: dict[str, Any]) -> bytes:
        """Make a patch's PNG from its image."""
        image = self._decoded(row)
        with self.watch("encode"):
            box = Box(row["x"], row["y"], row["w"], row["h"])
            return encode_png(cut(image, box, self.rule))

    def _decoded(self, row: dict[str, Any]) -> Pixels:
        if self._image is None or self._image[0] != row["source"]:
            fields = {name: row[name] for name, _ in IMAGE_PLACE}
            ref = ImageRef(key=row["source"], origin=row["origin"], **fields)
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
