"""The curation job: list the images, score those without a score, select, pack, publish.

The state of the job is in the output folder; a killed job loses at most the units under way.

    OUTPUT/                          the set: shards, manifest.json, index.parquet, scores.parquet
    OUTPUT/config.json               the resolved configuration, for --config
    OUTPUT/report.html               the page to read
    OUTPUT/.curate/                  the state of the job
        candidates.json              the settings that the candidates depend on; others are refused
        listing.json                 fingerprint of the inputs of the published set
        scores-ID/part-*.parquet     scores, a table for each unit; ID from the candidates' settings
                                     and the scorer's weights
        cut-ID/                      the shards that are being written; ID from their plan
"""

import hashlib
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datasets import shards
from datasets.sets import FORMATS
from datasets.sources import ImageRef, Listing, input_digest, list_images
from infra import storage
from infra.config import canonical_json, digest, pretty_json, to_dict
from infra.errors import BudgetExceeded, UsageError, UserError
from pipelines.curate import report as curation_report
from pipelines.curate import scoring
from pipelines.curate.config import CurateConfig
from pipelines.curate.filters import BROKEN, Filter, already_dropped, quality_worse_than, unscorable
from pipelines.curate.pack import LOCATED, PackShard
from pipelines.curate.selection import count_reasons, select, shard_tables
from pipelines.jobs.folder import SetFolder, plain
from pipelines.jobs.plan import PLAN, units_left, write_plan
from pipelines.jobs.scorers import describe
from pipelines.jobs.stage import Engine, Resources, StageTime, a_gpu_each, started
from pipelines.jobs.times import save_times

FORMAT = FORMATS["image set"]
DECODERS_PER_GPU = 6  # threads; 200 scores a second need about six cores of preparation
ENCODERS = ("pillow", "opencv-python-headless", "numpy", "pyarrow")


class Curation:
    """One job in one output folder.

    Args:
        config: the resolved configuration.
    """

    def __init__(self, config: CurateConfig) -> None:
        self.config = config
        self.set = SetFolder(storage.local_path(config.output), ".curate", "a curated set")
        self.folder, self.state = self.set.path, self.set.state
        self.scorer = describe(config.scorer, config.scoring_device)
        self.threshold = (
            self.scorer.default_threshold if config.threshold is None else config.threshold
        )
        if self.scorer.name == "none" and self.threshold is not None:
            raise UsageError(
                f"--threshold {self.threshold:g} with --scorer none: nothing is scored, so nothing "
                "can be compared; leave the threshold out or name a scorer"
            )
        self.candidate_fields = {**config.candidate_fields(), "scorer": self.scorer.identity()}
        self.cut_fields = {**config.cut_fields(), "threshold": self.threshold}

    def run(self, engine: Engine | None = None) -> None:
        """Do what is left to do.

        Args:
            engine: what carries out the units; by default Ray.

        Raises:
            UsageError: an input or output that cannot be used; nothing was written.
            BudgetExceeded: the set is complete, but more images were broken than ``max_bad``.
            UserError: the set could not be finished for a reason that the user can mend.
        """
        with self.set.held():
            self.set.claim(
                "candidates.json", self.candidate_fields, overwrite=self.config.overwrite
            )
            listing = list_images(self.config.input, self.state / "sources")
            listing = listing.first(self.config.first).first(self.config.limit)
            if self._finished(listing):
                sys.stdout.write(f"{self.folder}: complete already; nothing to do\n")
            else:
                with started(engine, self.config.workers) as running:
                    self._work(listing, running)
            self._check_budget()

    def _work(self, listing: Listing, engine: Engine) -> None:
        settings = {**self.candidate_fields, **self.cut_fields}
        where = self.set.tracked(
            "latent-pmrf/curate",
            settings,
            lambda: self._make(listing, engine),
            lambda manifest: curation_report.metrics(manifest, engine.times),
            track=self.config.track,
        )
        sys.stdout.write(where)

    def _make(self, listing: Listing, engine: Engine) -> dict[str, Any]:
        storage.write_bytes(self.folder / "config.json", pretty_json(to_dict(self.config)))
        storage.write_bytes(self.state / "candidates.json", pretty_json(self.candidate_fields))
        candidates = self.score(listing, engine)
        scores = select(candidates, self.filters(), self.config.cut)
        if not pc.any(pc.is_valid(scores["shard"])).as_py():
            raise UserError(
                f"no candidate was kept: {count_reasons(scores)}; change --threshold (now "
                f"{self.threshold}) or --size, or look at the inputs"
            )
        staging = self.staging(scores)
        if shards.read_manifest(staging) is None:  # else: killed while publishing
            self.pack(staging, scores, listing, engine)
            self.stage_manifest(staging, scores, listing)
        shards.publish(staging, self.folder)
        fingerprint = {"fingerprint": listing.fingerprint()}
        storage.write_bytes(self.state / "listing.json", pretty_json(fingerprint))
        return self.report(scores, listing, engine.times)

    def report(self, scores: pa.Table, listing: Listing, times: list[StageTime]) -> dict[str, Any]:
        """Write the page and print the summary; returns the set's manifest."""
        manifest = shards.read_manifest(self.folder)
        assert manifest is not None
        rule, limit = self.config.crop, self.config.max_pixels
        pictures = curation_report.Pictures(self.folder, listing, rule, limit)
        page = curation_report.build(manifest, scores, pictures, times)
        storage.write_bytes(self.folder / "report.html", page.encode())
        save_times(self.state / "times.json", times)
        sys.stdout.write(curation_report.summary(manifest, times, self.folder))
        return manifest

    def filters(self) -> tuple[Filter, ...]:
        """Return the predicates of this set, in order."""
        if self.threshold is None:
            return (already_dropped,)
        higher = self.scorer.higher_is_better
        return (
            already_dropped,
            unscorable,
            quality_worse_than(self.threshold, higher_is_better=higher),
        )

    def score(self, listing: Listing, engine: Engine) -> pa.Table:
        """Score every image that has no score yet; returns all candidates of the listing."""
        folder = self.state / f"scores-{digest(self.candidate_fields)[:16]}"
        candidates = scoring.known(folder, listing)
        done = set(candidates["source"].to_pylist())
        units = scoring.units(listing.images, done, folder)
        if not units:
            return candidates
        resources, decoders = self._scoring_resources(engine)
        scorer = (self.config.scorer, self.config.scoring_device)
        arguments = (self.config.crop, *scorer, self.config.max_pixels, decoders)
        total = sum(len(unit["refs"]) for unit in units)
        for _ in engine.run("score", units, scoring.ScoreImages, arguments, total, resources):
            pass
        return scoring.known(folder, listing)

    def _scoring_resources(self, engine: Engine) -> tuple[Resources, int]:
        """Return the resources of a scoring worker, a GPU or a CPU, and its decoding threads."""
        if self.config.scoring_device == "cpu":
            return Resources(), 0
        otherwise = "give --scorer-gpus 0 to score on CPUs"
        wanted, scorer = self.config.scorer_gpus, self.config.scorer.name
        return a_gpu_each(engine, wanted, f"--scorer {scorer}", otherwise), DECODERS_PER_GPU

    def staging(self, scores: pa.Table) -> Path:
        """Return the staging folder of this set; removes those of other selections."""
        versions = {name: metadata.version(name) for name in ENCODERS}
        rows = hashlib.sha256(shards.parquet_bytes(scores)).hexdigest()
        identity = digest([FORMAT, self.candidate_fields, self.cut_fields, versions, rows])
        staging = self.state / f"cut-{identity[:16]}"
        for other in self.state.glob("cut-*"):
            if other != staging:
                storage.remove_tree(other)
        return staging

    def pack(self, staging: Path, scores: pa.Table, listing: Listing, engine: Engine) -> None:
        """Write every shard of the plan that is not written yet."""
        tables = shard_tables(scores)
        refs = {ref.key: ref for ref in listing.images}
        plan = staging / PLAN
        write_plan(plan, [_located(table, refs) for table in tables.values()])
        units = units_left(staging, tables)
        total = sum(tables[str(unit["name"])].num_rows for unit in units)
        arguments = (str(plan), self.config.crop, self.scorer.name, self.config.max_pixels)
        for _ in engine.run("pack", units, PackShard, arguments, total):
            pass

    def stage_manifest(self, staging: Path, scores: pa.Table, listing: Listing) -> None:
        """Write the tables and, last, the manifest of a staged set."""
        written = [shards.load_record(path) for path in sorted(staging.glob("*.done.json"))]
        complete = [shard for shard in written if shard is not None]
        files = {
            shards.INDEX: shards.parquet_bytes(shards.index_table(complete)),
            "scores.parquet": shards.parquet_bytes(
                scores.replace_schema_metadata({"scorer": canonical_json(self.scorer.identity())})
            ),
        }
        for name, data in files.items():
            storage.write_bytes(staging / name, data)
        entries = [shard.entry() for shard in complete]
        sources = scores.group_by("source").aggregate([("source_sha256", "min")])
        pairs = zip(
            sources["source"].to_pylist(), sources["source_sha256_min"].to_pylist(), strict=True
        )
        manifest = {
            "format": FORMAT,
            "config": {**self.candidate_fields, **self.cut_fields},
            "scorer": {
                **self.scorer.identity(),
                "scale": list(self.scorer.scale),
                "higher_is_better": self.scorer.higher_is_better,
                "threshold": self.threshold,
            },
            "input": {
                "images": len(listing.images),
                "bytes": sum(ref.size for ref in listing.images),
                "digest": input_digest((key, sha or "") for key, sha in pairs),
                "broken": _count_broken(scores),
            },
            "totals": {
                "candidates": scores.num_rows,
                "samples": sum(entry["samples"] for entry in entries),
                "shards": len(entries),
                "bytes": sum(entry["bytes"] for entry in entries),
            },
            "dropped": count_reasons(scores),
            "shards": entries,
            "files": {name: shards.file_entry(staging / name) for name in files},
            "versions": {
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in ENCODERS},
            },
        }
        storage.write_bytes(staging / shards.MANIFEST, pretty_json(manifest))

    def _finished(self, listing: Listing) -> bool:
        """Tell whether the published set is the one asked for, by lengths and times of files."""
        manifest = shards.read_manifest(self.folder)
        record = self.state / "listing.json"
        if manifest is None or not record.exists():
            return False
        wanted = plain({**self.candidate_fields, **self.cut_fields})
        if manifest["config"] != wanted:
            return False
        if json.loads(record.read_bytes())["fingerprint"] != listing.fingerprint():
            return False
        return not self.set.lacks(manifest)

    def _check_budget(self) -> None:
        manifest = shards.read_manifest(self.folder)
        counts = manifest["input"] if manifest else {"broken": 0, "images": 1}
        if counts["broken"] > self.config.max_bad * counts["images"]:
            raise BudgetExceeded(
                f"{counts['broken']} of {counts['images']} images are broken, more than --max-bad "
                f"{self.config.max_bad:g} allows; the set is complete without them, and "
                f"{self.folder / 'scores.parquet'} names them with their reasons"
            )


def _count_broken(scores: pa.Table) -> int:
    return sum(count for reason, count in count_reasons(scores).items() if reason in BROKEN)


def _located(table: pa.Table, refs: dict[str, ImageRef]) -> pa.Table:
    """Add to a shard's rows the columns of `LOCATED` that say where each image is read."""
    located = [refs[source] for source in table["source"].to_pylist()]
    for name in LOCATED.names[len(table.schema.names) :]:
        values = pa.array([getattr(ref, name) for ref in located], LOCATED.field(name).type)
        table = table.append_column(name, values)
    return table
