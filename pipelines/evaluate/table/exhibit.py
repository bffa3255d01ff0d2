"""A table before it is written down: rows, columns, marks, and the sentences below."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infra.errors import UsageError
from models.metrics.catalog import METRICS
from pipelines.evaluate.differences import leads, paired
from pipelines.evaluate.ranking import Mark, marks, ranked_in
from pipelines.evaluate.summary import FEWEST, Difference
from pipelines.evaluate.table.columns import labels, ordered
from pipelines.evaluate.table.comparable import accepted_differences, refuse_unlike, used
from pipelines.evaluate.table.config import TableConfig
from pipelines.evaluate.table.evaluations import Evaluated, Row, opened, rows


@dataclass(frozen=True, slots=True)
class Exhibit:
    """What every format writes."""

    rows: Sequence[Row]
    metrics: Sequence[str]
    """The columns."""
    marks: dict[str, dict[str, Mark]]
    """By metric and method."""
    notes: Sequence[str]
    """Sentences to stand below the table."""


def exhibit(where: Sequence[str], config: TableConfig) -> Exhibit:
    """Lay evaluations side by side.

    Args:
        where: their folders.
        config: which numbers.

    Raises:
        UsageError: no finished evaluation, nothing to show, or what cannot be compared.
    """
    found = rows(opened(where), config.methods)
    metrics = _columns(found, config.metrics)
    refuse_unlike(found, metrics, config.accept)
    compared = {name: _Ranking(name, found) for name in metrics}
    return Exhibit(
        rows=found,
        metrics=metrics,
        marks={name: one.marks for name, one in compared.items()},
        notes=[
            *_of_the_set(used(found)),
            *_of_the_marks(compared, used(found)),
            *accepted_differences(found, metrics, config.accept),
            *_of_dashes(found, metrics),
            *_of_values(found, metrics),
            *_of_evaluations(used(found)),
            *(() if config.metrics else _of_missing(used(found))),
        ],
    )


def _columns(found: Sequence[Row], wanted: Sequence[str]) -> list[str]:
    """Return the metrics that are shown, in their order.

    Raises:
        UsageError: no evaluation has a wanted one, or there is none at all.
    """
    having = {name for row in found for place in row.places for name in row.found(place).values}
    if lacking := [name for name in wanted if name not in having]:
        why = [f"{one.where}: {_why(one, lacking[0])}" for one in used(found)]
        raise UsageError(f"--metrics {lacking[0]}: no evaluation has it. {'. '.join(why)}")
    if not having:
        raise UsageError("these evaluations have no metric; evaluate again with some")
    return ordered(set(wanted) or having)


def _why(place: Evaluated, metric: str) -> str:
    return place.summary.missing.get(metric, "it was not asked for there")


class _Ranking:
    """The marks of a metric, and why there are none.

    Args:
        metric: its name.
        found: the rows.
    """

    def __init__(self, metric: str, found: Sequence[Row]) -> None:
        self.metric = metric
        self._rows = {row.method: row for row in found}
        values = {row.method: value.value for row in found if (value := row.value(metric))}
        self.order = ranked_in(metric, values)
        self.unknown: list[tuple[str, str]] = []
        """Methods of whose difference there is no interval."""
        self.marks = marks(self.order, self._leads)

    def _leads(self, one: str, other: str) -> bool:
        difference = self._difference(self._rows[one], self._rows[other])
        if difference is None:
            self.unknown.append((one, other))
            return False
        return leads(difference, one)

    def _difference(self, one: Row, other: Row) -> Difference | None:
        """Return the difference of two methods: that of an evaluation of both, or of two."""
        for place in one.places:
            known = place.summary.difference(self.metric, one.method, other.method)
            if known is not None:
                return known
        here, there = one.place(self.metric), other.place(self.metric)
        if here is there or here is None or there is None or METRICS[self.metric].kind == "set":
            return None
        columns = {
            one.method: here.column(one.method, self.metric),
            other.method: there.column(other.method, self.metric),
        }
        return next(paired(self.metric, columns, max(here.resamples, there.resamples)), None)


def _of_the_set(places: Sequence[Evaluated]) -> Iterator[str]:
    """Say which pictures the numbers are of."""
    test_set = places[0].summary.test_set
    protocols = dict.fromkeys(one.summary.test_set.protocol for one in places)
    hq = next((one.summary.test_set.hq for one in places if one.summary.test_set.hq), "")
    known = f"digest of the names {test_set.keys[:12]}"
    known += f", of the HQ pictures {hq[:12]}" if hq else ", no HQ pictures"
    yield f"n = {test_set.n:,} pictures, protocol {', '.join(protocols)}; {known}"


def _of_the_marks(compared: dict[str, _Ranking], places: Sequence[Evaluated]) -> Iterator[str]:
    """Say what a mark means, and in which columns there could be none."""
    if all(len(one.order) < 2 for one in compared.values()):
        yield "Nothing is marked: no column has two values to compare"
        return
    if places[0].summary.test_set.n < FEWEST:
        yield f"Nothing is marked: an interval of fewer than {FEWEST} pictures supports nothing"
        return
    resamples = max(one.resamples for one in places)
    yield (
        "Bold is the best and underlined the second, marked only where the interval of the paired "
        "difference to every method behind leaves out 0; intervals are of 95 %, percentiles of "
        f"{resamples:,} resamples of the pictures, each for itself and not corrected for their "
        "number"
    )
    without = [name for name, one in compared.items() if one.unknown]
    if sets := [name for name in without if METRICS[name].kind == "set"]:
        yield (
            f"Not marked: {labels(sets)}, because differences of whole sets have an interval only "
            "between methods of one evaluation with --set-bootstrap"
        )
    if others := [name for name in without if name not in sets]:
        yield f"Not marked: {labels(others)}, because no picture has a value of both methods"


def _of_dashes(found: Sequence[Row], metrics: Sequence[str]) -> Iterator[str]:
    """Say why cells are empty."""
    reasons: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for row in found:
        for name in metrics:
            value, place = row.value(name), row.place(name) or row.places[0]
            if value is None or value.value is None:
                why = _why(place, name) if value is None else value.note
                methods, names = reasons.setdefault((place.where, why), ([], []))
                methods += [row.method] * (row.method not in methods)
                names += [name] * (name not in names)
    for (where, why), (methods, names) in reasons.items():
        yield f"A dash: {labels(names)} of {', '.join(methods)}, in {where}: {why}"


def _of_values(found: Sequence[Row], metrics: Sequence[str]) -> Iterator[str]:
    """Say what a user should know of values, once for all columns and rows that share it."""
    noted: dict[str, list[str]] = {}
    for row in found:
        for name in metrics:
            value = row.value(name)
            if value is None or value.value is None:
                continue
            if value.undefined:
                yield (
                    f"{labels([name])} of {row.method}: {value.undefined:,} of "
                    f"{value.fingerprint.n:,} pictures have no value, and the mean leaves them out"
                )
            if value.note:
                names = noted.setdefault(value.note, [])
                names += [name] * (name not in names)
    for note, names in noted.items():
        yield f"{labels(names)}: {note}"


def _of_evaluations(places: Sequence[Evaluated]) -> Iterator[str]:
    """Repeat the evaluations' own notes."""
    for place in places:
        where = f"{place.where}: " if len(places) > 1 else ""
        yield from (f"{where}{note}" for note in place.summary.notes)


def _of_missing(places: Sequence[Evaluated]) -> Iterator[str]:
    """Say which metrics none of the evaluations has."""
    having = {name for place in places for name in place.summary.metrics()}
    if missing := {name for place in places for name in place.summary.missing} - having:
        yield (
            f"Missing, for want of pictures or weights: {labels(ordered(missing))}; summary.json "
            "says of each what to get"
        )
