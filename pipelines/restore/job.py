"""The restoration job: list, restore what is not restored, report; killed, it loses one unit.

OUT/KEY.png, OUT/KEY.json   a restored picture, and how it was made
OUT/results.parquet         a row for each picture, the failed ones with the reason
OUT/faces.parquet           a row for each face, with its numbers
OUT/report.html             the page to read
OUT/.restore/               the state of the job
    identity.json           what the pictures depend on beside the inputs; others are refused
    config.json             the resolved configuration, for --config
    results.jsonl           what became of every picture so far
    attempts/               notes on what is under way
    sources/, references/   what is kept of archives
"""

import sys
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

from pydantic import ValidationError

from datasets.archives.found import LOSSES
from datasets.folders import contents
from datasets.sources import ImageRef, Listing
from infra import paths
from infra.config import digest, flat, from_dict, pretty_json, read_object, refusal, to_dict
from infra.errors import BudgetExceeded, UsageError
from infra.paths import AnyPath
from models.bundle_facts import BundleConfig
from pipelines.jobs.folder import OVERWRITING, SetFolder, plain
from pipelines.jobs.inputs import listed
from pipelines.jobs.stage import Engine, Resources, a_gpu_each, started
from pipelines.restore import report
from pipelines.restore.bundles import resolved
from pipelines.restore.config import STATE, Execution, RestoreConfig, RestoreRule, WholeRule
from pipelines.restore.faces import parse_faces, require_dlib
from pipelines.restore.given_faces import read_faces_json
from pipelines.restore.networks import BATCH_ON_GPU, check_method, open_model, settings
from pipelines.restore.outputs import of_keys
from pipelines.restore.results import Result, Results, left
from pipelines.restore.worker import RestoreImages, RestoreSpec

UNIT_ON_CPU, UNIT_ON_GPU = 8, 64  # pictures of a unit at most: a kill can lose as many a worker
# Pictures a GPU. By count compiling saves 23 ms a face of an H100, in passes of eight. That it
# takes two minutes is a guess, which the command corrects when it says how long it took.
COMPILED_FROM = 5_000
SHARES = 4  # units for each worker at least


class Restoration:
    """One job in one output folder.

    Args:
        config: the resolved configuration.
        bundle: configuration of its model's bundle, of a model that was opened before.

    Raises:
        UsageError: a model that cannot be used, or --whole without what finds faces.
    """

    def __init__(self, config: RestoreConfig, bundle: BundleConfig | None = None) -> None:
        config = config.absolute()
        rule = replace(config.rule, model=resolved(config.rule.model))  # of a run that goes on
        self.config = config = replace(config, rule=rule)
        self.set = SetFolder(paths.path_of(config.output), STATE, "a set of restored pictures")
        self.folder, self.state = self.set.path, self.set.state
        self.results = self.state / "results.jsonl"
        # of the bundle no network is kept: they are in memory where the workers are
        self.bundle = open_model(config.rule).config if bundle is None else bundle
        check_method(config.rule, self.bundle)
        self.settings = settings(config.rule, self.bundle)
        if config.whole.whole and not config.whole.faces_json:
            require_dlib()
        kept = {"keep_posterior_mean": True} if config.keep_posterior_mean else {}
        self.identity = plain({**self.settings, "whole": _whole(config.whole), **kept})

    def run(self, engine: Engine | None = None) -> None:
        """Do what is left to do.

        Args:
            engine: what carries out the units; by default Ray.

        Raises:
            UsageError: an output, an input or a device that cannot be used.
            UserError: the job could not be finished for a reason that the user can mend.
            BudgetExceeded: all is done that can be, and some pictures could not be restored.
        """
        with self.set.held():
            self.claim()
            listing = self.listed(self.state / "sources")
            listing.prepare()
            if self.config.overwrite:
                self._discard(listing)
            paths.write_bytes(self.state / "identity.json", pretty_json(self.identity))
            paths.write_bytes(self.state / "config.json", pretty_json(to_dict(self.config)))
            with Results(self.results) as results:
                earlier = self._work(listing, results, engine)
                self._end(listing, results, earlier)

    def claim(self) -> None:
        """Refuse what another configuration has made, unless it is to be overwritten.

        Raises:
            UsageError: names the settings that differ.
        """
        self.set.claim("identity.json", self.identity, overwrite=self.config.overwrite)

    def listed(self, kept: AnyPath) -> Listing:
        """List the pictures of the inputs; what lies in the output folder is none of them.

        Args:
            kept: folder of what is kept of archives.

        Raises:
            UsageError: there is none.
        """
        listing = listed(self.config.input, kept)
        own = f"{self.folder.resolve()}/"

        @cache
        def is_own(folder: str) -> bool:
            return f"{paths.path_from(folder).resolve()}/".startswith(own)

        images = tuple(ref for ref in listing.images if not is_own(ref.path.rpartition("/")[0]))
        if not images:
            raise UsageError(
                f"--input holds no picture but what this job has restored into {self.folder}; give "
                "the folder of the pictures that are to be restored"
            )
        return replace(listing, images=images)

    def there(self) -> set[str]:
        """Return the names of the files in the output folder, if there is one."""
        if not self.folder.is_dir():
            return set()
        return {found.name for found, _ in contents(self.folder)}

    def _discard(self, listing: Listing) -> None:
        """Remove what another configuration made here, the pictures before their results.

        A worker that was killed has left pictures without a result; so those of the inputs go too.
        """
        if self.set.has_started_over(self.identity):
            return
        with Results(self.results) as results:
            keys = {*results.by_key, *(ref.key for ref in listing.images)}
        for name in of_keys(self.there(), keys):
            (self.folder / name).unlink(missing_ok=True)
        self.set.start_over(self.identity)

    def _work(
        self, listing: Listing, results: Results, engine: Engine | None
    ) -> Sequence[ImageRef]:
        """Restore what is left; returns the pictures whose results were known before."""
        todo = left(listing.images, results.by_key, self.there())
        if not todo:
            sys.stdout.write(f"{self.folder}: all is restored already\n")
            return listing.images
        with started(engine, self.config.workers) as running:
            rule, resources = self.placed(running, len(todo))
            spec = RestoreSpec(
                rule=rule,
                whole=self.config.whole,
                output=str(self.folder),
                keep_posterior_mean=self.config.keep_posterior_mean,
                notes=str(self.state / "attempts"),
                session=uuid.uuid4().hex,
                model=self.bundle.digest,
                faces=read_faces_json(
                    self.config.whole.faces_json, {ref.key for ref in listing.images}
                ),
            )
            size = unit_size(len(todo), running.workers(resources), rule)
            parts = units(todo, size)
            made = running.run("restore", parts, RestoreImages, (spec,), len(todo), resources)
            said = ""
            for unit in made:
                if unit["compiling"] and not said:
                    said = f"the first worker compiled the networks in {unit['compiling']:.0f} s\n"
                    sys.stdout.write(said)
                self._keep([from_dict(Result, row) for row in unit["results"]], results)
        done = {ref.key for ref in todo}
        return [ref for ref in listing.images if ref.key not in done]

    def _keep(self, rows: Sequence[Result], results: Results) -> None:
        """Keep the results of a unit, and say what failed."""
        rows = [results.kept(row) for row in rows]
        for row in rows:
            for name in results.superseded(row):
                (self.folder / name).unlink(missing_ok=True)
        results.append(rows)
        say_failures(rows)

    def _references(self) -> dict[str, ImageRef]:
        """List HQ of the pictures by key, where there are any.

        Raises:
            UsageError: --reference cannot be read.
        """
        if not self.config.reference:
            return {}
        kept = self.state / "references"
        given = listed((self.config.reference,), kept, "--reference")
        given.prepare()
        return {ref.key: ref for ref in given.images}

    def placed(self, engine: Engine, pictures: int) -> tuple[RestoreRule, Resources]:
        """Say on what so many pictures are computed; an open device is a GPU where there is one.

        Raises:
            UsageError: there are not as many GPUs as are wanted, or none for what GPUs alone have.
        """
        device = self.config.rule.device or ("cuda" if engine.gpus() else "cpu")
        try:
            rule = replace(self.config.rule, device=device)
        except ValidationError as error:
            raise refusal(error, RestoreRule) from error
        said = f"{self.settings['method']} on {'GPUs' if device == 'cuda' else 'CPUs'}"
        if device == "cpu":
            sys.stdout.write(f"{said}\n")
            return rule, Resources(cpus=rule.threads)
        otherwise = "give --device cpu to restore on CPUs"
        resources = a_gpu_each(engine, self.config.gpus, "--device cuda", otherwise)
        each = pictures // engine.workers(resources)
        rule = replace(rule, execution=execution(rule, each, whole=self.config.whole.whole))
        compiling = "; compiling the networks takes minutes" * (rule.execution == "compiled")
        sys.stdout.write(f"{said}, {rule.execution}{compiling}\n")
        return rule, resources

    def _end(self, listing: Listing, results: Results, earlier: Sequence[ImageRef]) -> None:
        """Write the tables and the page, and say what became of the pictures.

        Raises:
            BudgetExceeded: some were not restored, or may lie where nothing could be read.
        """
        say_failures([results.by_key[ref.key] for ref in earlier])
        lost = [thing for thing in listing.ignored if thing.kind in LOSSES]
        for thing in lost:
            sys.stderr.write(f"{thing.kind}\t{thing.file} of {thing.origin}\t{thing.detail}\n")
        rows = [results.by_key[ref.key] for ref in listing.images]
        others = results.by_key.keys() - {row.key for row in rows}
        kept = [row for key in others if (row := results.by_key[key]).files]
        for name, data in report.tables(sorted([*rows, *kept], key=lambda row: row.key)).items():
            paths.write_bytes(self.folder / name, data)
        page = report.build(
            listing, rows, self.folder, flat(self.identity), self.bundle, self._references()
        )
        paths.write_bytes(self.folder / report.PAGE, page.encode())
        (self.state / OVERWRITING).unlink(missing_ok=True)
        sys.stdout.write(report.summary(rows, self.folder))
        failures = sum(bool(row.reason) for row in rows)
        faces = sum(len(row.failed_faces) for row in rows if not row.reason)
        if failures or faces or lost:
            raise BudgetExceeded(_unfinished(failures, len(rows), faces, len(lost)))


def _whole(rule: WholeRule) -> dict[str, Any]:
    """Return what pictures depend on of the rule for photographs: of --faces-json the content.

    Raises:
        UsageError: --faces or --faces-json cannot be read.
    """
    if not rule.whole:
        return {"whole": False}
    parse_faces(rule.faces)
    path = rule.faces_json
    content = digest(read_object(paths.path_of(path), f"--faces-json {path}")) if path else ""
    return {**asdict(rule), "faces_json": content}


def _unfinished(failures: int, pictures: int, faces: int, lost: int) -> str:
    said = [
        f"{failures:,} of {pictures:,} pictures were not restored" if failures else "",
        f"{faces:,} faces of others were not restored" if faces else "",
        f"{lost:,} places of the inputs could not be read" if lost else "",
    ]
    return f"{' and '.join(filter(None, said))}; each has its line above, with the reason"


def say_failures(rows: Iterable[Result]) -> None:
    """Write a line for each picture that was not restored: reason, key, and the same in words.

    A face that failed in a photograph whose other faces were restored has a line too.
    """
    for row in rows:
        if row.reason:
            sys.stderr.write(f"{row.reason}\t{row.key}\t{row.detail}\n")
            continue
        for face in row.failed_faces:
            sys.stderr.write(f"face_failed\t{row.key}:{face['number']}\t{face['reason']}\n")


def execution(rule: RestoreRule, pictures: int, *, whole: bool) -> Execution:
    """Return how networks run on a GPU that restores so many pictures, where that is left open.

    Compiled, a pass always has --batch faces, which photographs seldom fill.
    """
    if rule.execution is None:
        return "compiled" if pictures >= COMPILED_FROM and not whole else "graph"
    return rule.execution


def unit_size(pictures: int, workers: int, rule: RestoreRule) -> int:
    """Return how many pictures make a unit: few enough that all workers have some to the end.

    On a GPU they are so many that the reading of the first and the writing of the last, during
    which it waits, are a small part of the whole.
    """
    if rule.device == "cpu":
        return max(1, min(UNIT_ON_CPU, pictures // (SHARES * workers)))
    return max(rule.batch or BATCH_ON_GPU, min(UNIT_ON_GPU, pictures // (SHARES * workers)))


def units(refs: Sequence[ImageRef], size: int) -> list[dict[str, Any]]:
    """Group pictures by ``size`` to units of work, whose names fit into a file's."""
    parts = [refs[first : first + size] for first in range(0, len(refs), size)]
    return [
        {
            "name": digest([ref.key for ref in part])[:16],
            "what": f"{len(part)} pictures from {part[0].key} on",
            "images": [asdict(ref) for ref in part],
        }
        for part in parts
    ]


def missing(config: RestoreConfig) -> list[str]:
    """List the options without which there is nothing to do."""
    given = {"input": config.input, "output": config.output, "model": config.rule.model}
    return [f"--{name}" for name, value in given.items() if not value]


def check(config: RestoreConfig) -> None:
    """Refuse a command line on which nothing can be done.

    Raises:
        UsageError: says what is missing.
    """
    if lacking := missing(config):
        raise UsageError(f"no {', '.join(lacking)}; python -m pipelines.restore --help says what")
