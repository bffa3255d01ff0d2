"""Runs in groups, their curves, and how every group compares with the first."""

from collections.abc import Sequence
from dataclasses import dataclass

from infra.errors import UsageError
from models.metrics.catalog import METRICS
from pipelines.evaluate.convergence.comparable import metrics_of, refuse_incomparable
from pipelines.evaluate.convergence.curves import COSTS, Curve, curve, unknown_costs
from pipelines.evaluate.convergence.records import RunRecord, read_run
from pipelines.evaluate.convergence.speedup import Comparison, compare


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

    @property
    def records(self) -> list[RunRecord]:
        """Return the runs."""
        return [member.record for member in self.members]

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

    @property
    def baseline(self) -> Group:
        """Return the group that the others are compared with."""
        return self.groups[0]

    @property
    def records(self) -> list[RunRecord]:
        """Return all runs."""
        return [record for group in self.groups for record in group.records]


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
    return Outcome(groups, metrics, compared)


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
