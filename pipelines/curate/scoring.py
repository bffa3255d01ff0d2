"""Scoring of images: each is cut into candidate patches that get a score; none is dropped by it."""

import dataclasses
import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.decoding import Pixels, decode_picture, single_threaded
from datasets.fetching import Fetch, read_ahead
from datasets.fingerprint import perceptual_hash
from datasets.sample import CANDIDATE, empty_row
from datasets.sets import claimed_set
from datasets.shards import parquet_bytes
from datasets.sources import ImageRef, Listing
from datasets.unusable import TRANSIENT, UnusableImage
from infra.ahead import map_ahead
from infra.config import differences, digest, pretty_json, to_dict
from infra.errors import UsageError
from infra.paths import AnyPath, glob, path_of, read_all, write_bytes
from pipelines.curate.config import CropRule
from pipelines.curate.crop import cut_all, is_storable, patch_key
from pipelines.curate.kept import Keeping, KeptUnit
from pipelines.jobs.attempts import Attempt, attempt
from pipelines.jobs.score_file import AUTHORS, write_scores
from pipelines.jobs.scorer_choice import Device, ScorerChoice
from pipelines.jobs.scorers import ImportedScores, Quality, ScorerInfo, load
from pipelines.jobs.stage import Stopwatch

PART = CANDIDATE.append(pa.field("stamp", pa.int64()))
"""A candidate, and the modification time of the file it was scored from."""
Opened = tuple[list[dict[str, Any]], list[Pixels]]
"""The rows of an image, and a patch for each of them; or rows without patches."""
VERSION = 3  # of the rules by which pixels and candidates are made: other rules, other scores
UNITS = 128  # the least number of units, if there are so many images: workers end together
LARGEST_UNIT = 64  # images; as much is lost when a worker is killed


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """Where a job keeps what it knows of the units of scoring."""

    notes: tuple[str, str]
    """Folder of the notes on units under way, and name of the job that runs
    (`pipelines.jobs.attempts`)."""
    keeping: Keeping | None
    """Which PNGs are made for packing, and where they are put; None makes none."""


class ScoreImages:
    """The worker that scores the images of a unit and writes one table of candidates.

    A unit is done when its table exists; a repeated unit writes the same bytes under the same name.
    An image that has killed its worker twice becomes a row with the reason `crashed`.

    Args:
        rule: how an image becomes patches.
        choice: the scorer, which is loaded here.
        device: that a learned scorer computes on.
        max_pixels: larger images are dropped without being decoded.
        decoders: threads that decode ahead while a device scores; 0 uses none.
        memory: what the job keeps of units; not needed to score without units.
    """

    def __init__(
        self,
        rule: CropRule,
        choice: ScorerChoice,
        device: Device,
        max_pixels: int,
        decoders: int = 0,
        memory: Memory | None = None,
    ) -> None:
        single_threaded()
        self.rule = rule
        self.scorer = load(choice, device)
        self.max_pixels = max_pixels
        self.decoders = decoders
        self.memory = memory or Memory(("", ""), None)
        self._kept: KeptUnit | None = None
        self.watch = Stopwatch()
        self._before: dict[str, list[dict[str, Any]]] = {}

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Score the images of ``unit["refs"]`` into ``unit["path"]``; returns counts and times.

        ``unit["before"]`` has rows of images whose file has another time than when it was scored;
        if its bytes are the same, they are taken over.
        """
        refs = [ImageRef(**fields) for fields in unit["refs"]]
        path, (folder, session) = path_of(unit["path"]), self.memory.notes
        self._before = {}
        for row in unit["before"]:
            self._before.setdefault(row["source"], []).append(row)
        with attempt(path_of(folder), path.stem, session) as under_way:
            stamps = {ref.key: ref.stamp for ref in refs}
            keeping = self.memory.keeping
            with KeptUnit(keeping, path.stem) if keeping else nullcontext() as self._kept:
                found = self._one_by_one(refs, under_way) if under_way.is_careful else None
                rows = self.candidates(refs) if found is None else found
            with self.watch("write"):
                stamped = [{**row, "stamp": stamps[row["source"]]} for row in rows]
                write_bytes(path, parquet_bytes(pa.Table.from_pylist(stamped, schema=PART)))
        return {"done": len(refs), "seconds": self.watch.take()}

    def _one_by_one(self, refs: Sequence[ImageRef], under_way: Attempt) -> list[dict[str, Any]]:
        """Return the rows of images of which one may kill this process."""
        rows: list[dict[str, Any]] = []
        for ref in refs:
            if under_way.has_killed(ref.key):
                rows.append(image_row(ref) | {"drop_reason": "crashed"})
            else:
                with under_way.doing(ref.key):
                    rows += self.candidates([ref])
        return rows

    def candidates(self, refs: Sequence[ImageRef]) -> list[dict[str, Any]]:
        """Return the candidate rows of images, in order; an image without a patch has one row."""
        rows: list[dict[str, Any]] = []

        def opened() -> Iterator[Opened]:
            images = read_ahead(refs)
            opening = map_ahead(lambda image: self.open(*image), images, threads=self.decoders)
            for image_rows, patches in opening:
                rows.extend(image_rows)
                yield image_rows, patches

        start, before = time.perf_counter(), self.watch.total()
        self.scored(opened())
        other = self.watch.total() - before
        self.watch.add("score", max(0.0, time.perf_counter() - start - other))
        return rows

    def scored(self, images: Iterable[Opened]) -> list[dict[str, Any]]:
        """Score images as they come; returns the rows of patches with their quality filled in."""
        waiting: deque[tuple[dict[str, Any], Pixels]] = deque()
        done = []

        def by_image() -> Iterator[list[Pixels]]:
            for rows, patches in images:
                waiting.extend(zip(rows, patches, strict=False))
                yield patches

        for quality in self._scores(waiting, by_image()):
            row, patch = waiting.popleft()
            row["quality"] = None if math.isnan(quality.value) else quality.value
            row["detail"] = json.dumps(quality.detail) if quality.detail else None
            if row["quality"] is None and isinstance(self.scorer, ImportedScores):
                row["drop_reason"] = "not_in_scores"
            if self._kept is not None:
                with self.watch("encode"):
                    self._kept.add(row, patch)
            done.append(row)
        return done

    def _scores(
        self, waiting: deque[tuple[dict[str, Any], Pixels]], images: Iterable[list[Pixels]]
    ) -> Iterator[Quality]:
        if isinstance(self.scorer, ImportedScores):
            scores, patches = self.scorer.scores, chain.from_iterable(images)
            return (Quality(scores.get(waiting[0][0]["key"], math.nan)) for _ in patches)
        return self.scorer.score(images)

    def open(self, ref: ImageRef, fetch: Fetch) -> Opened:
        """Fetch, decode and cut one image.

        Returns:
            Its rows without scores, and a patch for each of them; one dropped row and no patch
            where the image cannot be used; its rows with scores and no patch if the same bytes
            were scored before.
        """
        row = image_row(ref)
        before = [r for r in self._before.get(ref.key, ()) if r["source_sha256"]]
        # A key that an earlier version took, when the limit was higher, stays in its set.
        if not before and not is_storable(ref.key, self.rule):
            return [row | {"drop_reason": "key_too_long"}], []
        try:
            with self.watch("read"):
                data = fetch()
                row["source_sha256"] = hashlib.sha256(data).hexdigest()
            if same := [r for r in before if r["source_sha256"] == row["source_sha256"]]:
                return same, []
            with self.watch("decode"):
                picture = decode_picture(data, self.max_pixels)
            image = picture.pixels
            patches = list(cut_all(image, self.rule))
        except UnusableImage as error:
            return [row | {"drop_reason": error.reason}], []
        except MemoryError:
            return [row | {"drop_reason": "out_of_memory"}], []
        row |= {"image_width": image.shape[1], "image_height": image.shape[0]}
        with self.watch("hash"):
            row["source_phash"] = perceptual_hash(image)
        row["icc"] = picture.profile
        if not patches:
            return [row | {"drop_reason": "too_small"}], []
        rows = [
            row
            | {"key": patch_key(ref.key, index, self.rule), "index": index}
            | {"x": box.x, "y": box.y, "w": box.w, "h": box.h}
            for index, box, _ in patches
        ]
        return rows, [patch for _, _, patch in patches]


def image_row(ref: ImageRef) -> dict[str, Any]:
    """Return the row of an image without a patch."""
    place = {"origin": ref.origin, "file": ref.file}
    return empty_row(key=ref.key, source=ref.key, **place, index=0, source_bytes=ref.size)


class Known(NamedTuple):
    """The scores that there are of a listing's images."""

    rows: pa.Table
    """Rows of `PART` of the images whose files have the length and time that they had."""
    stale: pa.Table
    """Rows of images whose file has the same length and another time: perhaps the same bytes."""


def units(images: Sequence[ImageRef], known: Known, folder: AnyPath) -> list[dict[str, Any]]:
    """Group the images to score into units.

    Args:
        images: all images, sorted.
        known: the scores that there are.
        folder: where the units' tables are written.
    """
    size = max(1, min(LARGEST_UNIT, len(images) // UNITS))
    done = set(known.rows["source"].to_pylist())
    stale: dict[str, list[dict[str, Any]]] = {}
    for row in known.stale.select(CANDIDATE.names).to_pylist():
        stale.setdefault(row["source"], []).append(row)
    groups = [
        [ref for ref in images[start : start + size] if ref.key not in done]
        for start in range(0, len(images), size)
    ]
    groups = [group for group in groups if group]
    names = [digest([[ref.key, ref.size, ref.stamp] for ref in group])[:16] for group in groups]
    return [
        {
            "refs": [dataclasses.asdict(ref) for ref in group],
            "before": [row for ref in group for row in stale.get(ref.key, ())],
            "path": str(folder / f"part-{name}.parquet"),
        }
        for name, group in zip(names, groups, strict=True)
    ]


def known(folder: AnyPath, listing: Listing, *, transient: bool) -> Known:
    """Read the scores of a listing's images; each image's from one table only.

    What a row says of the place of its image is the listing's: the scores do not depend on it.

    Args:
        folder: of the units' tables.
        listing: the images.
        transient: whether to take, for an image without another row, the one that says that it
            could not be read. A run tries such images again, so it does not take them for done.
    """
    current = {(ref.key, ref.size, ref.stamp) for ref in listing.images}
    tables, others = [PART.empty_table()], [PART.empty_table()]
    for table in _parts(folder, transient=transient):
        rows = table.select(["source", "source_bytes", "stamp"]).to_pylist()
        scored = [(row["source"], row["source_bytes"], row["stamp"]) for row in rows]
        tables.append(table.filter(pa.array([image in current for image in scored], pa.bool_())))
        others.append(table)
        current -= set(scored)
    wanted = {(key, size) for key, size, _ in current}
    rest = pa.concat_tables(others)
    pairs = zip(rest["source"].to_pylist(), rest["source_bytes"].to_pylist(), strict=True)
    stale = rest.filter(pa.array([pair in wanted for pair in pairs], pa.bool_()))
    return Known(_placed(pa.concat_tables(tables), listing), _placed(stale, listing))


def _parts(folder: AnyPath, *, transient: bool) -> Iterator[pa.Table]:
    """Yield the tables by name, without what may pass; and then, if wanted, what may pass."""
    tables = read_all(glob(folder, "*.parquet"))
    parts = [pq.read_table(pa.BufferReader(table)) for table in tables]
    passing = [pc.is_in(part["drop_reason"], pa.array(sorted(TRANSIENT))) for part in parts]
    yield from (part.filter(pc.invert(mask)) for part, mask in zip(parts, passing, strict=True))
    if transient:
        yield from (part.filter(mask) for part, mask in zip(parts, passing, strict=True))


def _placed(table: pa.Table, listing: Listing) -> pa.Table:
    """Set the columns ``origin`` and ``file`` to what the listing says."""
    refs = {ref.key: ref for ref in listing.images}
    found = [refs[source] for source in table["source"].to_pylist()]
    for name, values in (("origin", [r.origin for r in found]), ("file", [r.file for r in found])):
        place = table.schema.get_field_index(name)
        column = pa.array(values, pa.string())
        table = table.set_column(place, table.schema.field(place), column)
    return table


def give_up(folder: AnyPath, refs: Sequence[ImageRef]) -> None:
    """Let images that were scored and then killed their worker in packing be `crashed`."""
    rows = [image_row(ref) | {"drop_reason": "crashed", "stamp": ref.stamp} for ref in refs]
    table = parquet_bytes(pa.Table.from_pylist(rows, schema=PART))
    # `known` takes an image's rows from the first table by name, and "part-" comes later.
    write_bytes(folder / f"crashed-{hashlib.sha256(table).hexdigest()[:16]}.parquet", table)


def export(folder: AnyPath, name: str) -> int:
    """Write the scores of all scored candidates of a set.

    Args:
        folder: of the set.
        name: ``FILE.json``, or ``authors:FILE.json`` for the authors' {key: score}, which their
            data sets read; ``--scorer`` reads both by these names.

    Returns:
        The number of scores.

    Raises:
        UserError: no complete set in ``folder``, or one that has no such scores.
    """
    claimed = claimed_set(folder, "image set")
    manifest = claimed.manifest
    target, authors = path_of(name.removeprefix(AUTHORS)), name.startswith(AUTHORS)
    config, scorer = manifest["config"], dict(manifest["scorer"])
    if scorer["name"] == "none":
        raise UsageError(f"{folder}: nothing was scored (--scorer none), so there are no scores")
    if authors and scorer["name"] != "qalign":
        raise UsageError(
            f"{folder}: scored by {scorer['name']}, but the authors' format means scores of "
            f"Q-Align; leave {AUTHORS} out"
        )
    table = claimed.table("scores.parquet", columns=["key", "quality"])
    rows = table.filter(pc.is_valid(table["quality"])).to_pylist()
    scores = {row["key"]: row["quality"] for row in rows}
    if authors:
        write_bytes(target, pretty_json(scores))
    else:
        del scorer["threshold"]
        crop = {name: config[name] for name in to_dict(CropRule())}
        write_scores(target, scores, scorer, crop)
    return len(rows)


def refuse_other_crop(info: ScorerInfo, rule: CropRule) -> None:
    """Refuse imported scores of candidates that were cut in another way.

    Raises:
        UsageError: names the fields that differ.
    """
    changed = differences(to_dict(rule), info.crop) if info.crop else []
    if changed:
        raise UsageError(
            f"--scorer: the file's scores are of other candidates ({'; '.join(changed)}); give "
            "the options with which they were scored, or score anew"
        )
