"""Scoring of images: each is cut into candidate patches that get a score; none is dropped by it."""

import dataclasses
import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.decoding import Pixels, UndecodableImage, decode, single_threaded
from datasets.sample import CANDIDATE, empty_row
from datasets.sets import claimed_set
from datasets.shards import fits_ustar, parquet_bytes
from datasets.sources import ImageRef, Listing, read
from infra.ahead import map_ahead
from infra.config import digest, pretty_json
from infra.storage import write_bytes
from pipelines.curate.config import CropRule
from pipelines.curate.crop import cut_all, patch_key
from pipelines.jobs.scorer_choice import Device, ScorerChoice
from pipelines.jobs.scorers import ImportedScores, Quality, load
from pipelines.jobs.stage import Stopwatch

PART = CANDIDATE.append(pa.field("stamp", pa.int64()))
"""A candidate, and the modification time of the file it was scored from."""
UNITS = 128  # the least number of units, if there are so many images: workers end together
LARGEST_UNIT = 64  # images; as much is lost when a worker is killed


class ScoreImages:
    """The worker that scores the images of a unit and writes one table of candidates.

    A unit is done when its table exists; a repeated unit writes the same bytes under the same name.

    Args:
        rule: how an image becomes patches.
        choice: the scorer, which is loaded here.
        device: that a learned scorer computes on.
        max_pixels: larger images are dropped without being decoded.
        decoders: threads that read and decode ahead while a device scores; 0 uses no threads.
    """

    def __init__(
        self,
        rule: CropRule,
        choice: ScorerChoice,
        device: Device,
        max_pixels: int,
        decoders: int = 0,
    ) -> None:
        single_threaded()
        self.rule = rule
        self.scorer = load(choice, device)
        self.max_pixels = max_pixels
        self.decoders = decoders
        self.watch = Stopwatch()

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Score the images of ``unit["refs"]`` into ``unit["path"]``; returns counts and times."""
        refs = [ImageRef(**fields) for fields in unit["refs"]]
        stamps = {ref.key: ref.stamp for ref in refs}
        rows = [{**row, "stamp": stamps[row["source"]]} for row in self.candidates(refs)]
        with self.watch("write"):
            table = pa.Table.from_pylist(rows, schema=PART)
            write_bytes(Path(unit["path"]), parquet_bytes(table))
        return {"done": len(refs), "seconds": self.watch.take()}

    def candidates(self, refs: Sequence[ImageRef]) -> list[dict[str, Any]]:
        """Return the candidate rows of images, in order; an image without a patch has one row."""
        rows: list[dict[str, Any]] = []

        def candidates() -> Iterator[tuple[dict[str, Any], Pixels]]:
            for image_rows, patches in map_ahead(self.open, refs, threads=self.decoders):
                rows.extend(image_rows)
                yield from zip(image_rows, patches, strict=False)

        start, before = time.perf_counter(), self.watch.total()
        self.scored(candidates())
        opening = self.watch.total() - before
        self.watch.add("score", max(0.0, time.perf_counter() - start - opening))
        return rows

    def scored(self, candidates: Iterable[tuple[dict[str, Any], Pixels]]) -> list[dict[str, Any]]:
        """Score (row, patch) pairs as they come; returns the rows with their quality filled in."""
        waiting: deque[dict[str, Any]] = deque()
        done = []

        def patches() -> Iterator[Pixels]:
            for row, patch in candidates:
                waiting.append(row)
                yield patch

        for quality in self._scores(waiting, patches()):
            row = waiting.popleft()
            row["quality"] = None if math.isnan(quality.value) else quality.value
            row["detail"] = json.dumps(quality.detail) if quality.detail else None
            done.append(row)
        return done

    def _scores(
        self, waiting: deque[dict[str, Any]], patches: Iterable[Pixels]
    ) -> Iterator[Quality]:
        if isinstance(self.scorer, ImportedScores):
            return (Quality(self.scorer.scores.get(waiting[0]["key"], math.nan)) for _ in patches)
        return self.scorer.score(patches)

    def open(self, ref: ImageRef) -> tuple[list[dict[str, Any]], list[Pixels]]:
        """Read, decode and cut one image.

        Returns:
            Its rows without scores, and a patch for each of them; one dropped row and no patch
            where the image cannot be used.
        """
        row = empty_row(
            key=ref.key, source=ref.key, origin=ref.origin, index=0, source_bytes=ref.size
        )
        if not fits_ustar(ref.key):
            return [row | {"drop_reason": "key_too_long"}], []
        try:
            with self.watch("read"):
                data = read(ref)
                row["source_sha256"] = hashlib.sha256(data).hexdigest()
            with self.watch("decode"):
                image = decode(data, self.max_pixels)
        except UndecodableImage as error:
            return [row | {"drop_reason": error.reason}], []
        except OSError:
            return [row | {"drop_reason": "unreadable"}], []
        row |= {"image_width": image.shape[1], "image_height": image.shape[0]}
        patches = list(cut_all(image, self.rule))
        if not patches:
            return [row | {"drop_reason": "too_small"}], []
        rows = [
            row
            | {"key": patch_key(ref.key, index, self.rule), "index": index}
            | {"x": box.x, "y": box.y, "w": box.w, "h": box.h}
            for index, box, _ in patches
        ]
        return rows, [patch for _, _, patch in patches]


def units(images: Sequence[ImageRef], done: Collection[str], folder: Path) -> list[dict[str, Any]]:
    """Group the images to score into units.

    The last bits of a learned score may depend on the other images of a batch, so which images
    share a unit depends on the input alone, not on the workers or on when an earlier run was
    killed.

    Args:
        images: all images, sorted.
        done: keys of images that have scores.
        folder: where the units' tables are written.
    """
    size = max(1, min(LARGEST_UNIT, len(images) // UNITS))
    groups = [
        [ref for ref in images[start : start + size] if ref.key not in done]
        for start in range(0, len(images), size)
    ]
    groups = [group for group in groups if group]
    names = [digest([[ref.key, ref.size, ref.stamp] for ref in group])[:16] for group in groups]
    return [
        {
            "refs": [dataclasses.asdict(ref) for ref in group],
            "path": str(folder / f"part-{name}.parquet"),
        }
        for name, group in zip(names, groups, strict=True)
    ]


def known(folder: Path, listing: Listing) -> pa.Table:
    """Read the scores of images that have not changed since; each image's from one table only."""
    current = {(ref.key, ref.size, ref.stamp) for ref in listing.images}
    tables = [PART.empty_table()]
    for path in sorted(folder.glob("part-*.parquet")):
        table = pq.read_table(path)
        rows = table.select(["source", "source_bytes", "stamp"]).to_pylist()
        scored = [(row["source"], row["source_bytes"], row["stamp"]) for row in rows]
        tables.append(table.filter(pa.array([image in current for image in scored])))
        current -= set(scored)
    return pa.concat_tables(tables)


def export(folder: Path, target: Path) -> int:
    """Write ``{key: score}`` of every scored candidate of a set, as the authors' datasets read it.

    Returns:
        The number of scores.

    Raises:
        UserError: no complete set in ``folder``, or another table of scores than its own.
    """
    table = claimed_set(folder, "image set").table("scores.parquet", columns=["key", "quality"])
    rows = table.filter(pc.is_valid(table["quality"])).to_pylist()
    write_bytes(target, pretty_json({row["key"]: row["quality"] for row in rows}))
    return len(rows)
