"""Runs in groups, their curves and comparisons, and what a reader has to know of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infra.errors import UsageError
from models.metrics.catalog import METRICS
from pipelines.evaluate.convergence.comparable import (
    metrics_of,
    partly_recorded,
    refuse_incomparable,
)
from pipelines.evaluate.convergence.curves import COSTS, FORK, Curve, curve, unknown_costs
from pipelines.evaluate.convergence.records import RunRecord, read_run
from pipelines.evaluate.convergence.speedup import Comparison, compare

BATCH = "engine.global_batch_size"
OF_THE_LOOP = ("loop.seed", "loop.max_steps")  # what else the loop is told changes no curve


@dataclass(frozen=True, slots=True)
class Member:
    """A run of a group."""

    record: RunRecord
    curves: dict[str, Curve]
    """By metric."""


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in their seed only."""

    name: str
    members: tuple[Member, ...]

    def curves(self, metric: str) -> list[Curve]:
        """Return the curves of all seeds."""
        return [member.curves[metric] for member in self.members]


@dataclass(frozen=True, slots=True)
class Compared:
    """A group beside the baseline, by a metric and a cost."""

    metric: str
    group: str
    cost: str
    found: Comparison


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that is found."""

    groups: tuple[Group, ...]
    """The first is the baseline."""
    metrics: tuple[str, ...]
    compared: tuple[Compared, ...]
    notes: tuple[str, ...]

    @property
    def baseline(self) -> Group:
        """Return the group that the others are compared with."""
        return self.groups[0]

    @property
    def records(self) -> list[RunRecord]:
        """Return all runs."""
        return [member.record for group in self.groups for member in group.members]

    def differing(self) -> dict[str, list[str]]:
        """Return the settings in which runs differ, with the value of each run."""
        records = self.records
        names = dict.fromkeys(name for one in records for name in one.params)
        values = {
            name: [one.params.get(name, "not recorded") for one in records]
            for name in names
            if name in OF_THE_LOOP or not name.startswith(("loop.", "validation."))
        }
        return {name: some for name, some in values.items() if len(set(some)) > 1}


def find(named: Sequence[tuple[str, Sequence[str]]], asked: Sequence[str]) -> Outcome:
    """Read runs and compare every group with the first.

    Args:
        named: the name of each group, "" for that of its run, and its runs.
        asked: metrics; none for all that every run has.

    Raises:
        UsageError: no such run, or a run or a name that is given twice.
        UserError: runs whose validations cannot be compared.
    """
    records = [[read_run(source) for source in sources] for _, sources in named]
    everything = [record for some in records for record in some]
    _refuse_twice(everything)
    metrics = tuple(metrics_of(everything, asked))
    refuse_incomparable(everything, metrics)
    names = _names([name for name, _ in named], records)
    groups = tuple(
        Group(name, tuple(Member(one, {m: curve(one, m) for m in metrics}) for one in some))
        for name, some in zip(names, records, strict=True)
    )
    compared = tuple(
        Compared(metric, other.name, cost, _compared(groups[0], other, metric, cost))
        for metric in metrics
        for other in groups[1:]
        for cost in COSTS
    )
    return Outcome(groups, metrics, compared, tuple(_notes(groups)))


def _refuse_twice(records: Sequence[RunRecord]) -> None:
    seen: dict[str, str] = {}
    for record in records:
        who = record.token or record.source
        if who in seen:
            raise UsageError(
                f"{seen[who]} and {record.source} are the same run; give every run once"
            )
        seen[who] = record.source


def _names(given: Sequence[str], records: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Return a name for each group: as given, else of its run, else what the user typed for it."""
    own = [name or some[0].name for name, some in zip(given, records, strict=True)]
    names = [
        name if given[i] or own.count(name) == 1 else records[i][0].source
        for i, name in enumerate(own)
    ]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"group {name!r} is given twice; give every group a name of its own")
    return names


def _compared(baseline: Group, other: Group, metric: str, cost: str) -> Comparison:
    for member in (*baseline.members, *other.members):
        why = unknown_costs(member.record).get(cost)
        if why:
            return Comparison((), f"{member.record.source}: {why}")
    return compare(
        baseline.curves(metric),
        other.curves(metric),
        cost,
        higher_is_better=METRICS[metric].higher_is_better,
    )


def _notes(groups: Sequence[Group]) -> Iterator[str]:
    """Yield what else bears on the comparison, in sentences."""
    members = [member for group in groups for member in group.members]
    records = [member.record for member in members]
    batches = {one.source: one.params.get(BATCH, "an unknown number of") for one in records}
    if len(set(batches.values())) > 1:
        sizes = ", ".join(f"{size} samples in {source}" for source, size in batches.items())
        yield f"Steps are of different batches ({sizes}): compare FLOPs rather than steps."
    hosts = sorted({one.tags.get("host", "not recorded") for one in records})
    if len(hosts) > 1:
        yield f"Hours are of different machines (hosts: {', '.join(hosts)})."
    for record in records:
        if FORK in record.tags:
            yield f"{record.source} is a fork of the run {record.tags[FORK]}."
        if begun := record.tags.get("init.from"):
            yield f"{record.source} did not begin with random weights, but with those of {begun}."
        for cost, why in unknown_costs(record).items():
            yield f"{record.source}: {COSTS[cost]} are unknown: {why}."
    for member in members:
        for metric, one in member.curves.items():
            if one.undefined:
                yield (
                    f"{member.record.source}: {one.undefined} of its validations have no finite "
                    f"{metric} and are left out."
                )
    if before := partly_recorded(records):
        yield (
            f"{', '.join(before)}: recorded by a version that did not tell yet what a validation "
            "depends on. The metrics of LQ and HQ agree, so the pictures are the same; whether the "
            "weights of the metrics are is not known."
        )
