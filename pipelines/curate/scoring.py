"""Images -> scored candidates, a unit at a time. Scoring never drops by quality."""

import dataclasses
import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.decoding import Pixels, UndecodableImage, decode, single_threaded
from datasets.sample import CANDIDATE, empty_row
from datasets.shards import fits_ustar, parquet_bytes, read_manifest
from datasets.sources import ImageRef, Listing, read
from infra.config import digest, pretty_json
from infra.errors import UsageError
from infra.storage import write_bytes
from pipelines.curate.config import CropRule
from pipelines.curate.crop import cut_all, patch_key
from pipelines.jobs.ahead import in_order
from pipelines.jobs.scorer_choice import Device, ScorerChoice
from pipelines.jobs.scorers import ImportedScores, Quality, load
from pipelines.jobs.stage import Stopwatch

PART = CANDIDATE.append(pa.field("stamp", pa.int64()))
"""A candidate, and the modification time of the file it was scored from."""
UNITS = 128  # at least, where there are as many images: enough to balance, little to lose
LARGEST_UNIT = 64  # images


class ScoreImages:
    """The actor: a unit of image references in, one durable table of candidates out.

    A unit is done when its table exists; a repeated unit writes the same bytes under the same name.

    Args:
        rule: how an image becomes patches.
        choice: the scorer, loaded here.
        device: that a learned scorer computes on.
        max_pixels: larger images are dropped undecoded.
        decoders: threads that read and decode ahead while a device scores; 0 decodes in line.
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
        """Turn images into candidate rows, in order; an image without a patch has one row."""
        rows: list[dict[str, Any]] = []

        def candidates() -> Iterator[tuple[dict[str, Any], Pixels]]:
            for image_rows, patches in self._opened(refs):
                rows.extend(image_rows)
                yield from zip(image_rows, patches, strict=False)

        start, before = time.perf_counter(), self.watch.total()
        self.scored(candidates())
        opening = self.watch.total() - before
        self.watch.add("score", max(0.0, time.perf_counter() - start - opening))
        return rows

    def scored(self, candidates: Iterable[tuple[dict[str, Any], Pixels]]) -> list[dict[str, Any]]:
        """Score (row, patch) pairs as they come; returns the rows, now with their quality."""
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

    def _opened(
        self, refs: Sequence[ImageRef]
    ) -> Iterator[tuple[list[dict[str, Any]], list[Pixels]]]:
        """Open images in order, ``decoders`` of them ahead of need."""
        return in_order((partial(self.open, ref) for ref in refs), self.decoders)

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
    """Cut the images to score into units.

    A learned scorer's last bits may depend on what shares its batch, so which images share a unit
    is a function of the input alone: not of the workers, nor of when an earlier run was killed.

    Args:
        images: all images, sorted.
        done: keys of images that have scores.
        folder: where the units' tables go.
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
    """Read the scores at hand of images that are still what they were, one image from one part."""
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
        UsageError: no complete set in ``folder``.
    """
    if read_manifest(folder) is None:
        raise UsageError(f"{folder}: no complete set here (no manifest.json); curate it first")
    table = pq.read_table(folder / "scores.parquet", columns=["key", "quality"])
    rows = table.filter(pc.is_valid(table["quality"])).to_pylist()
    write_bytes(target, pretty_json({row["key"]: row["quality"] for row in rows}))
    return len(rows)
