"""The curation job: list the images, score those without a score, select, pack, publish, finish.

The state of the job is in the output folder; a killed job loses at most the units under way.

    OUTPUT/                          the set: shards, manifest.json, index.parquet, scores.parquet
    OUTPUT/ignored.parquet           what the inputs hold that is no image
    OUTPUT/config.json               the resolved configuration, for --config
    OUTPUT/report.html               the page to read
    OUTPUT/.curate/                  the state of the job, besides what `SetFolder` keeps
        candidates.json              the settings that the candidates depend on; others are refused
        sources/                     listings, seek indexes and copies of archives; of a set in a
                                     bucket each machine has its copies in the cache on its disk
        held_out.json                images that a set here held out of training
        listing.json                 digest of the published manifest; fingerprint of its inputs
        scores-ID/part-*.parquet     scores, a table for each unit; ID from the candidates' settings
                                     and the scorer's weights
        kept-ID/                     PNGs for packing; until the set is published
        attempts/                    notes on the units under way
        cut-ID/                      the shards that are being written; ID from their plan
        mending/                     files that take the place of damaged ones
"""

import hashlib
import json
import shlex
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datasets import shards
from datasets.archives.archive import forget_copies
from datasets.archives.found import LOSSES
from datasets.sample import SCORES
from datasets.sets import claimed_set
from datasets.sources import ImageRef, Listing, ignored_table
from datasets.verify import damaged
from infra import paths
from infra.config import digest, pretty_json, to_dict
from infra.errors import BudgetExceeded, UsageError, UserError
from infra.paths import AnyPath, path_of
from pipelines.curate import exclusion, held_out, kept, scoring
from pipelines.curate import report as curation_report
from pipelines.curate.config import CurateConfig
from pipelines.curate.filters import Filter, score_filters
from pipelines.curate.manifest import (
    FORMAT,
    IGNORED_FILE,
    SCORES_FILE,
    claims,
    counted,
    encoders,
    scores_bytes,
)
from pipelines.curate.pack import PackShard, located
from pipelines.curate.selection import count_reasons, select, shard_tables
from pipelines.jobs.folder import PAGE, SetFolder, plain
from pipelines.jobs.inputs import listed
from pipelines.jobs.plan import PLAN, finished, units_left, write_plan
from pipelines.jobs.scorers import describe
from pipelines.jobs.stage import Engine, Resources, StageTime, a_gpu_each, started
from pipelines.jobs.times import save_times

DECODERS_PER_GPU = 6  # threads; 200 scores a second need about six cores of preparation


class Curation:
    """One job in one output folder.

    Args:
        config: the resolved configuration.
    """

    def __init__(self, config: CurateConfig) -> None:
        config = config.absolute()
        self.config = config
        self.set = SetFolder(paths.path_of(config.output), ".curate", "a curated set")
        self.folder, self.state = self.set.path, self.set.state
        self.scorer = describe(config.scorer, config.scoring_device)
        scoring.refuse_other_crop(self.scorer, config.crop)
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
        self.notes = str(self.state / "attempts"), uuid.uuid4().hex

    @property
    def fields(self) -> dict[str, Any]:
        """Settings of the set: the manifest's ``config``."""
        return plain({**self.candidate_fields, **self.cut_fields})

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
            overwrite = self.config.overwrite
            self.set.claim("candidates.json", self.candidate_fields, overwrite=overwrite)
            listing = self.listing()
            if overwrite:
                self.set.start_over(self.candidate_fields)
            if not self._is_published(listing):
                listing.prepare()
                with started(engine, self.config.workers) as running:
                    self._work(lambda: self._make(listing, running), running.times)
            elif not self.set.is_finished(track=self.config.track):
                listing.prepare()
                self._work(lambda: self.report(self._published_scores(), listing, []), [])
            else:
                sys.stdout.write(f"{self.folder}: complete already; nothing to do\n")
            forget_copies(self.sources)
            self._check_budget()

    def repair(self, engine: Engine | None = None) -> list[str]:
        """Make again, from the inputs, exactly the files of the published set that are damaged.

        Args:
            engine: what carries out the units; by default Ray.

        Returns:
            The names of the files.

        Raises:
            UserError: they would not come out as they were; nothing was changed.
        """
        with self.set.held():
            restored = self.set.restore_manifest()
            manifest = claimed_set(self.folder, "image set").manifest
            names = damaged(self.folder, manifest)
            if names:
                listing = self.listing()
                listing.prepare()
                scores = self._scores_of(manifest, names, listing)
                if tables := _named(scores, names):
                    with started(engine, self.config.workers) as running:
                        self.mend_shards(tables, manifest, listing, running)
                self.mend_tables(names, manifest, scores, listing)
                forget_copies(self.sources)
            return [*restored, *names]

    def listing(self) -> Listing:
        """List the images that the set is made of; reads what keeps training and testing apart.

        Raises:
            UsageError: inputs, a list for `val`, or excluded sets that cannot be used.
        """
        listing = listed(self.config.input, self.sources)
        cut = self.config.cut
        self.listed = held_out.read_val_list(cut.val_list, {ref.key for ref in listing.images})
        self.excluded = exclusion.read_excluded(cut.exclude, self.sources)
        self.cut_fields |= {
            "val_list": held_out.list_digest(self.listed),
            "exclude": digest(self.excluded.to_pylist()) if self.excluded.num_rows else None,
        }
        return listing.first(self.config.first).first(self.config.limit)

    @property
    def sources(self) -> AnyPath:
        """Folder of what is kept of archives."""
        return self.state / "sources"

    def select(self, candidates: pa.Table) -> pa.Table:
        """Decide every candidate; returns rows of `SCORES`."""
        matches = exclusion.matches(candidates, self.excluded)
        return select(candidates, self.filters(), self.config.cut, self.listed, matches)

    def _work(self, make: Callable[[], dict[str, Any]], times: list[StageTime]) -> None:
        where = self.set.tracked(
            "latent-pmrf/curate",
            {"input": list(self.config.input), **self.fields},
            make,
            lambda manifest: curation_report.metrics(manifest, times),
            track=self.config.track,
        )
        sys.stdout.write(where)

    def _make(self, listing: Listing, engine: Engine) -> dict[str, Any]:
        paths.write_bytes(self.state / "candidates.json", pretty_json(self.candidate_fields))
        while True:
            scores = self.select(self.score(listing, engine))
            if not pc.any(pc.is_valid(scores["shard"])).as_py():
                raise UserError(
                    f"no candidate was kept: {count_reasons(scores)}; change --threshold (now "
                    f"{self.threshold}) or --size, or look at the inputs"
                )
            held_out.HeldOut(self.held_out).check(scores, self.config.cut, self.folder)
            paths.write_bytes(self.folder / "config.json", pretty_json(to_dict(self.config)))
            crashed = self.cut(scores, listing, engine)
            if not crashed:
                return self.report(scores, listing, engine.times)
            scoring.give_up(self.scores_folder, crashed)

    def cut(self, scores: pa.Table, listing: Listing, engine: Engine) -> list[ImageRef]:
        """Make the published set that of these scores, by mending it or by packing another.

        Returns:
            The images that killed the workers that packed them; the set is then not made.
        """
        manifest = None if self.set.is_discarded() else shards.read_manifest(self.folder)
        if manifest is not None and self._is_of(manifest, scores):
            lost = self.set.lacks(manifest)
            if tables := _named(scores, lost):
                self.mend_shards(tables, manifest, listing, engine)
            self.mend_tables(lost, manifest, scores, listing)
            self._save_listing(listing, self.folder)
            return []
        staging = self.staging(scores)
        if shards.read_manifest(staging) is None:  # else: killed while publishing
            crashed = self.pack(staging, shard_tables(scores), listing, engine)
            if crashed:
                return crashed
            self.stage_manifest(staging, scores, listing)
        self._save_listing(listing, staging)
        held_out.HeldOut(self.held_out).add(scores, self.config.cut)
        self.set.publish(staging)
        return []

    def report(self, scores: pa.Table, listing: Listing, times: list[StageTime]) -> dict[str, Any]:
        """Write the page of the published set and print the summary; returns its manifest.

        What was only needed to publish it goes first: a kill may have kept it.
        """
        for left in ("cut-*", "kept-*", "mending*", "attempts*"):
            for folder in self.state.glob(left):
                paths.remove_tree(folder)
        manifest = claimed_set(self.folder, "image set").manifest
        rule, limit = self.config.crop, self.config.max_pixels
        pictures = curation_report.Pictures(self.folder, listing, rule, limit)
        page = curation_report.build(manifest, scores, pictures, times)
        paths.write_bytes(self.folder / PAGE, page.encode())
        save_times(self.state / "times.json", times)
        sys.stdout.write(curation_report.summary(manifest, times, self.folder))
        return manifest

    def filters(self) -> tuple[Filter, ...]:
        """Return the predicates of this set, in order."""
        return score_filters(self.threshold, higher_is_better=self.scorer.higher_is_better)

    def score(self, listing: Listing, engine: Engine) -> pa.Table:
        """Score every image that has no score yet; returns all candidates of the listing."""
        known = scoring.known(self.scores_folder, listing, transient=False)
        units = scoring.units(listing.images, known, self.scores_folder)
        if not units:
            return known.rows
        resources, decoders = self.scoring_resources(engine)
        scorer = (self.config.scorer, self.config.scoring_device)
        # Beside a GPU all CPUs prepare patches, and the many that pack decode again.
        memory = scoring.Memory(self.notes, None if decoders else self.keeping())
        arguments = (self.config.crop, *scorer, self.config.max_pixels, decoders, memory)
        total = sum(len(unit["refs"]) for unit in units)
        for _ in engine.run("score", units, scoring.ScoreImages, arguments, total, resources):
            pass
        return scoring.known(self.scores_folder, listing, transient=True).rows

    @property
    def held_out(self) -> AnyPath:
        """The record of the images that were held out of training."""
        return self.state / "held_out.json"

    @property
    def scores_folder(self) -> AnyPath:
        """Folder of the scores of these candidates."""
        return self.state / f"scores-{digest([scoring.VERSION, self.candidate_fields])[:16]}"

    def keeping(self) -> kept.Keeping:
        """Return which PNGs scoring makes for packing, and where it puts them."""
        identity = digest([scoring.VERSION, self.candidate_fields, encoders()])
        folder = self.state / f"kept-{identity[:16]}"
        return kept.Keeping(str(folder), self.threshold, self.scorer.higher_is_better)

    def scoring_resources(self, engine: Engine) -> tuple[Resources, int]:
        """Return the resources of a scoring worker, a GPU or a CPU, and its decoding threads."""
        if self.config.scoring_device == "cpu":
            return Resources(), 0
        otherwise = "give --scorer-gpus 0 to score on CPUs"
        wanted, scorer = self.config.scorer_gpus, self.config.scorer.name
        return a_gpu_each(engine, wanted, f"--scorer {scorer}", otherwise), DECODERS_PER_GPU

    def staging(self, scores: pa.Table) -> AnyPath:
        """Return the staging folder of this set; removes those of other selections."""
        rows = hashlib.sha256(shards.parquet_bytes(scores)).hexdigest()
        identity = digest([FORMAT, self.candidate_fields, self.cut_fields, encoders(), rows])
        staging = self.state / f"cut-{identity[:16]}"
        for other in self.state.glob("cut-*"):
            if other != staging:
                paths.remove_tree(other)
        return staging

    def pack(
        self, staging: AnyPath, tables: Mapping[str, pa.Table], listing: Listing, engine: Engine
    ) -> list[ImageRef]:
        """Write every shard that is not written yet; returns images that killed their workers.

        Args:
            staging: folder of the shards.
            tables: the rows of every shard by its name.
            listing: where the images are.
            engine: carries out the units.
        """
        refs = {ref.key: ref for ref in listing.images}
        plan = staging / PLAN
        folder = self.keeping().folder
        rows = located(pa.concat_tables(tables.values()), refs, path_of(folder))
        ends = list(accumulate(table.num_rows for table in tables.values()))
        write_plan(plan, [rows[start:end] for start, end in pairwise([0, *ends])])
        units = units_left(staging, tables)
        total = sum(tables[str(unit["name"])].num_rows for unit in units)
        rule, limit = self.config.crop, self.config.max_pixels
        arguments = (str(plan), rule, self.scorer.name, limit, self.notes, folder)
        results = engine.run("pack", units, PackShard, arguments, total)
        crashed = {str(result["crashed"]) for result in results if "crashed" in result}
        return [refs[key] for key in sorted(crashed)]

    def stage_manifest(self, staging: AnyPath, scores: pa.Table, listing: Listing) -> None:
        """Write the tables and, last, the manifest of a staged set."""
        complete = finished(staging)
        manifest = claims(self.fields, self.scorer, self.threshold)
        ignored = ignored_table(listing)
        files = {
            shards.INDEX: shards.parquet_bytes(shards.index_table(complete)),
            SCORES_FILE: scores_bytes(scores, manifest),
            IGNORED_FILE: shards.parquet_bytes(ignored),
        }
        hashes = {name: paths.write_bytes(staging / name, data) for name, data in files.items()}
        entries = [shard.entry() for shard in complete]
        manifest |= {
            **counted(scores, ignored, entries),
            "shards": entries,
            "files": {
                name: {"bytes": len(data), "sha256": hashes[name]} for name, data in files.items()
            },
        }
        paths.write_bytes(staging / shards.MANIFEST, pretty_json(manifest))

    def mend_shards(
        self,
        tables: Mapping[str, pa.Table],
        manifest: Mapping[str, Any],
        listing: Listing,
        engine: Engine,
    ) -> None:
        """Replace shards of the published set by the same ones, made again.

        Args:
            tables: the rows of each of the shards by its name.
            manifest: of the set.
            listing: where the images are.
            engine: carries out the units.

        Raises:
            UserError: one would not come out as it was; it was not replaced.
        """
        staging = self.state / "mending"
        paths.remove_tree(staging)
        if crashed := self.pack(staging, tables, listing, engine):
            raise UserError(
                f"{crashed[0].path}: image {crashed[0].key} kills its worker now, and did not when "
                f"the set in {self.folder} was made; --overwrite makes the set anew without it"
            )
        for name in tables:
            self._replace(staging, name, manifest)
        paths.remove_tree(staging)

    def mend_tables(
        self,
        names: Sequence[str],
        manifest: Mapping[str, Any],
        scores: pa.Table,
        listing: Listing,
    ) -> None:
        """Replace tables of the published set, whose shards are whole, by the same ones.

        Args:
            names: of the damaged files; those that are no tables are passed over.
            manifest: of the set.
            scores: what `scores.parquet` holds.
            listing: everything in the inputs.

        Raises:
            UserError: one would not come out as it was; it was not replaced.
        """
        staging = self.state / "mending"
        if SCORES_FILE in names:
            paths.write_bytes(staging / SCORES_FILE, scores_bytes(scores, manifest))
            self._replace(staging, SCORES_FILE, manifest)
        if IGNORED_FILE in names:
            paths.write_bytes(staging / IGNORED_FILE, shards.parquet_bytes(ignored_table(listing)))
            self._replace(staging, IGNORED_FILE, manifest)
        if shards.INDEX in names:
            whole = [shards.scan(self.folder / entry["name"]) for entry in manifest["shards"]]
            table = shards.parquet_bytes(shards.index_table(whole))
            paths.write_bytes(staging / shards.INDEX, table)
            self._replace(staging, shards.INDEX, manifest)
        paths.remove_tree(staging)

    def _replace(self, staging: AnyPath, name: str, manifest: Mapping[str, Any]) -> None:
        if not self.set.replace_equal(staging, name, manifest):
            made, here = manifest["versions"], claims({}, self.scorer, None)["versions"]
            raise UserError(
                f"{self.folder / name}: made again from the inputs it is another file than the "
                f"manifest says (the set was made with {made}, here is {here}); install what made "
                "it, or run the job with --overwrite to make the whole set anew"
            )

    def _scores_of(
        self, manifest: Mapping[str, Any], names: Sequence[str], listing: Listing
    ) -> pa.Table:
        """Return the scores of the published set: its table, or what it was made of."""
        if SCORES_FILE not in names:
            return self._published_scores()
        known = scoring.known(self.scores_folder, listing, transient=True)
        scores = self.select(known.rows)
        if not self._is_of(manifest, scores):
            raise UserError(
                f"{self.folder / SCORES_FILE} cannot be made again: the inputs, or the scores in "
                f"{self.scores_folder}, are no longer those of the set; run the job again with "
                "python -m pipelines.curate --config "
                f"{shlex.quote(str(self.folder / 'config.json'))} --overwrite"
            )
        return scores

    def _published_scores(self) -> pa.Table:
        table = shards.read_table(self.folder / SCORES_FILE)
        return table.replace_schema_metadata(None).cast(SCORES)

    def _is_of(self, manifest: Mapping[str, Any], scores: pa.Table) -> bool:
        """Tell whether a published manifest is that of these scores and this configuration."""
        if manifest["format"] != FORMAT or manifest["config"] != self.fields:
            return False
        wanted = hashlib.sha256(scores_bytes(scores, manifest)).hexdigest()
        is_same: bool = manifest["files"][SCORES_FILE]["sha256"] == wanted
        return is_same

    def _save_listing(self, listing: Listing, folder: AnyPath) -> None:
        """Note the inputs of a set, whose manifest is in ``folder``."""
        manifest = paths.sha256(folder / shards.MANIFEST)
        record = {"manifest": manifest, "fingerprint": listing.fingerprint()}
        paths.write_bytes(self.state / "listing.json", pretty_json(record))

    def _is_published(self, listing: Listing) -> bool:
        """Tell whether the published set is the one asked for, by lengths and times of files.

        One with images that could not be read for a transient reason is not: they are tried again.
        """
        manifest = shards.read_manifest(self.folder)
        record = paths.read_if_there(self.state / "listing.json")
        if manifest is None or manifest["format"] != FORMAT or record is None:
            return False
        if manifest["config"] != self.fields or manifest["input"]["transient"]:
            return False
        said = json.loads(record)
        return (
            said["manifest"] == self.set.manifest_digest()
            and said["fingerprint"] == listing.fingerprint()
            and not self.set.lacks(manifest)
        )

    def _check_budget(self) -> None:
        manifest = shards.read_manifest(self.folder)
        if manifest is None:
            return
        counts = manifest["input"]
        lost = sum(counts["ignored"].get(kind, 0) for kind in LOSSES)
        if counts["broken"] + lost > self.config.max_bad * counts["images"]:
            raise BudgetExceeded(
                f"{counts['broken']} of {counts['images']} images are broken, and {lost} places in "
                "the inputs could not be read at all, more than --max-bad "
                f"{self.config.max_bad:g} allows; the set is complete without them, and "
                f"{SCORES_FILE} and {IGNORED_FILE} in {self.folder} name them with their reasons"
            )


def _named(scores: pa.Table, names: Sequence[str]) -> dict[str, pa.Table]:
    """Return the rows of those shards that are named."""
    return {name: rows for name, rows in shard_tables(scores).items() if name in names}
