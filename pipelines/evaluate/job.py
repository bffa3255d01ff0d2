"""The evaluation: pair, measure what is not measured, summarise; killed, it loses one unit.

OUT/summary.json       every number with its interval and its fingerprint
OUT/values.parquet     a row for each picture of each method, a column for each metric
OUT/report.html        the page to read
OUT/.evaluate/         the state of the job
    config.json        the resolved configuration, for --config
    measured.jsonl     what is measured of every picture so far
    features/          features of the metrics of whole sets
    attempts/, sources/, tracking/    notes on what is under way; of archives; for MLflow
"""

import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from datasets.test_sets import PROTOCOLS
from infra import paths
from infra.config import digest, from_dict, pretty_json, to_dict
from infra.errors import BudgetExceeded, UsageError, UserError
from infra.paths import AnyPath
from models.metrics.catalog import METRICS
from pipelines.evaluate import report
from pipelines.evaluate.config import STATE, EvaluateConfig, MeasureConfig
from pipelines.evaluate.judges import Found, features_identity, identity, look
from pipelines.evaluate.measured import Measured, MeasuredFile, value_name
from pipelines.evaluate.pairs import METHOD, Pairs, find_pairs, mark
from pipelines.evaluate.recorded import record
from pipelines.evaluate.results import Results
from pipelines.evaluate.summarise import summarise
from pipelines.evaluate.summary import PAGE, SUMMARY, VALUES, Summary, encoded
from pipelines.evaluate.worker import BATCH_ON_GPU, Failure, Group, MeasurePictures, MeasureSpec
from pipelines.evaluate.writing import by_reason
from pipelines.jobs.folder import SetFolder
from pipelines.jobs.stage import Engine, Resources, a_gpu_each, started

UNIT_ON_CPU, UNIT_ON_GPU = 8, 64  # pictures of a unit at most: a kill can lose as many a worker
SHARES = 4  # units for each worker at least


class Evaluation:
    """One job in one output folder.

    Args:
        config: the configuration.
        saved: what is saved for --config; by default the configuration.
    """

    def __init__(self, config: EvaluateConfig, saved: Any = None) -> None:
        self.config = config = config.absolute()
        self.saved = (saved or config).absolute()
        self.set = SetFolder(paths.path_of(config.output), STATE, "an evaluation")
        self.folder, self.state = self.set.path, self.set.state

    def run(self, engine: Engine | None = None) -> Summary:
        """Measure what is left to measure, and write the tables and the page.

        Args:
            engine: what carries out the units; by default Ray.

        Returns:
            All numbers.

        Raises:
            UsageError: pictures without partners, damaged weights, a device that is not there.
            UserError: the job could not be finished for a reason that the user can mend; pictures
                that cannot be measured are listed, and no summary is written.
            BudgetExceeded: all is done, but metrics that were asked for by name are missing.
        """
        with self.set.held():
            kept = self.state / "sources"
            pairs = find_pairs(self.config.sets, kept, self.has_hq)
            found = look(self.config.measure.metrics, self.config.measure.weights, pairs)
            say_missing(found.missing)
            paths.write_bytes(self.state / "config.json", pretty_json(to_dict(self.saved)))
            with MeasuredFile(self.state / "measured.jsonl") as known:
                results = self._work(pairs, found, known, engine)
            summary = summarise(results, self.config)
            self._write(results, summary)
        if self.config.measure.metrics and found.missing:
            raise BudgetExceeded(f"without {', '.join(found.missing)}; each has its line above")
        return summary

    @property
    def has_hq(self) -> bool:
        """Tell whether the reference holds the HQ picture of every key."""
        return PROTOCOLS[self.config.sets.protocol].has_hq

    def _work(
        self, pairs: Pairs, found: Found, known: MeasuredFile, engine: Engine | None
    ) -> Results:
        """Measure what is not known; returns what is then known.

        Raises:
            UserError: pictures that cannot be measured.
        """
        with started(engine, self.config.measure.workers) as running:
            device, resources = placed(self.config.measure, running, "metrics")
            known.forget_features(paths.sizes(self.state / "features"))
            groups = [*wanted_groups(pairs, found, known.by_mark, device)]
            failures = self._measure(groups, found, known, running, device, resources)
        if failures:
            say_failures(failures)
            raise UserError(
                f"{len(failures):,} pictures cannot be measured; each has its line above. Numbers "
                "of the others would be those of another test set: mend them and run the same "
                "command again, which measures only these"
            )
        return Results(pairs, found, device, known.by_mark, self.state / "features")

    def _measure(
        self,
        groups: Sequence[Group],
        found: Found,
        known: MeasuredFile,
        engine: Engine,
        device: str,
        resources: Resources,
    ) -> list[Failure]:
        if not groups:
            sys.stdout.write(f"{self.folder}: all is measured already\n")
            return []
        spec = spec_of(self.config.measure, found, device, self.state)
        most = UNIT_ON_GPU if device == "cuda" else UNIT_ON_CPU
        size = max(1, min(most, len(groups) // (SHARES * engine.workers(resources))))
        units = [*as_units(groups, size)]
        total = sum(len(group.pictures) for group in groups)
        failures: list[Failure] = []
        for done in engine.run("measure", units, MeasurePictures, (spec,), total, resources):
            known.append([Measured.from_values(row) for row in done["measured"]])
            failures += [from_dict(Failure, row) for row in done["failures"]]
        return failures

    def _write(self, results: Results, summary: Summary) -> None:
        paths.write_bytes(self.folder / VALUES, results.parquet())
        page = report.build(results, summary)
        paths.write_bytes(self.folder / PAGE, page.encode())
        paths.write_bytes(self.folder / SUMMARY, encoded(summary))
        sys.stdout.write(report.as_text(summary, self.folder))
        if self.config.measure.track:
            sys.stdout.write(record(self.folder, self.state, summary))


def spec_of(measure: MeasureConfig, found: Found, device: str, state: AnyPath) -> MeasureSpec:
    """Return what all units share.

    Args:
        measure: what the user said of the measuring.
        found: the metrics.
        device: where is measured.
        state: folder of features and notes.
    """
    return MeasureSpec(
        digests=found.digests,
        weights=measure.weights,
        device=device,
        batch=(measure.batch or BATCH_ON_GPU) if device == "cuda" else 1,
        threads=measure.threads,
        features=str(state / "features"),
        notes=str(state / "attempts"),
        session=uuid.uuid4().hex,
    )


def placed(measure: MeasureConfig, engine: Engine, what: str) -> tuple[str, Resources]:
    """Say on what is computed; an open device is a GPU where there is one.

    Args:
        measure: which device, and how much of it.
        engine: where is computed.
        what: for the line that says it.

    Raises:
        UsageError: there are not as many GPUs as are wanted.
    """
    device = measure.device or ("cuda" if engine.gpus() else "cpu")
    sys.stdout.write(f"{what} on {'GPUs' if device == 'cuda' else 'CPUs'}\n")
    if device == "cpu":
        return device, Resources(cpus=measure.threads)
    otherwise = "give --device cpu to compute on CPUs"
    return device, a_gpu_each(engine, measure.gpus, "--device cuda", otherwise)


def wanted_groups(
    pairs: Pairs, found: Found, known: Mapping[str, Measured], device: str
) -> Iterator[Group]:
    """Yield the pictures of every key of which something is not known yet.

    Args:
        pairs: the pictures.
        found: the metrics.
        known: what is measured already, by mark.
        device: where is measured.
    """
    identities = {name: identity(name, weights, device) for name, weights in found.digests.items()}
    singles = [name for name in found.digests if METRICS[name].kind == "image"]
    networks = {  # one metric of each network stands for all: the first, whose weights were found
        features_identity(name, found.digests[name], device): name
        for name in reversed([*found.digests])
        if METRICS[name].kind == "set"
    }

    def lacks(one: str, marks: Mapping[str, str]) -> tuple[str, ...]:
        have = known[one].values if one in known else {}
        return tuple(
            name
            for name in singles
            if value_name(identities[name], marks.get(METRICS[name].against, "")) not in have
        )

    def lacks_features(one: str) -> tuple[str, ...]:
        have = known[one].features if one in known else {}
        return tuple(name for features, name in networks.items() if features not in have)

    roles = pairs.roles
    for key in pairs.keys:
        marks = {role: mark(refs[key]) for role, refs in roles.items()}
        values = {role: lacks(marks[role], marks) for role in roles if role.startswith(METHOD)}
        features = {role: lacks_features(marks[role]) for role in values}
        if pairs.distribution is pairs.hq and "hq" in roles:
            features["hq"] = lacks_features(marks["hq"])
        needed = {METRICS[name].against for names in values.values() for name in names}
        pictures = {
            role: refs[key]
            for role, refs in roles.items()
            if values.get(role) or features.get(role) or role in needed or marks[role] not in known
        }
        if pictures:
            yield Group(key=key, pictures=pictures, values=values, features=features)
    if networks and pairs.distribution is not pairs.hq:
        for key, ref in (pairs.distribution or {}).items():
            if wanted := lacks_features(mark(ref)):
                yield Group(
                    key=key, pictures={"distribution": ref}, features={"distribution": wanted}
                )


def as_units(groups: Sequence[Group], size: int) -> Iterator[dict[str, object]]:
    """Put ``size`` groups into each unit of work, whose names fit into a file's."""
    for first in range(0, len(groups), size):
        part = [asdict(group) for group in groups[first : first + size]]
        what = f"{len(part)} keys from {part[0]['key']} on"
        yield {"name": digest(part)[:16], "what": what, "groups": part}


def say_missing(missing: Mapping[str, str]) -> None:
    """Write a line for each reason for which metrics cannot be computed, with what to do."""
    for why, names in by_reason(missing).items():
        sys.stderr.write(f"missing\t{', '.join(names)}\t{why}\n")


def say_failures(failures: Sequence[Failure]) -> None:
    """Write a line for each picture that cannot be measured."""
    for one in sorted(failures, key=lambda one: (one.option, one.key)):
        sys.stderr.write(f"{one.reason}\t{one.option} {one.key}\t{one.detail}\n")


def check(config: EvaluateConfig) -> None:
    """Refuse a command line on which nothing can be done.

    Raises:
        UsageError: says what is missing.
    """
    given = {"restored": config.sets.restored, "output": config.output}
    if lacks := [f"--{name}" for name, value in given.items() if not value]:
        raise UsageError(f"no {', '.join(lacks)}; python -m pipelines.evaluate --help says what")
