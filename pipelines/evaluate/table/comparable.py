"""What may stand in one column: values of one test set, whose fingerprints are equal."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

from infra.errors import UsageError
from pipelines.evaluate.summary import Fingerprint, differing
from pipelines.evaluate.table.columns import labels
from pipelines.evaluate.table.evaluations import Evaluated, Row

REMEDIES = {
    "weights": "give both evaluations the same --weights",
    "reference": "evaluate both against the same pictures, by --reference, --distribution or "
    "--posterior-mean",
    "n": "evaluate the same pictures",
    "dtype": "give --accept dtype if that is meant, or evaluate both on one kind of device",
    "device": "give --accept device if that is meant, or evaluate both on one kind of device",
}
"""What to do where a part of two fingerprints differs."""
ANOTHER_VERSION = "evaluate both with one version of this program"


class Unlike(NamedTuple):
    """A metric whose values in two evaluations have unequal fingerprints."""

    metric: str
    one: str
    """The folder of the first evaluation."""
    other: str
    differences: tuple[str, ...]
    """As `differing` says them."""


def refuse_unlike(rows: Sequence[Row], metrics: Sequence[str], accepted: Sequence[str]) -> None:
    """Refuse rows of which a column would hold what cannot be compared.

    Args:
        rows: the methods.
        metrics: the columns.
        accepted: parts of the fingerprints that may differ.

    Raises:
        UsageError: other test sets, unequal fingerprints, or evaluations without a common metric;
            says what differs, in which folders, and what to do.
    """
    places = used(rows)
    for one, other in combinations(places, 2):
        if said := _other_test_set(one, other):
            raise UsageError(said)
    unlike = [*_unlike(places, metrics, accepted)]
    if unlike:
        raise UsageError(_refusal(unlike))
    if len(places) > 1 and (alone := _without_common(places, metrics)):
        raise UsageError(alone)


def accepted_differences(
    rows: Sequence[Row], metrics: Sequence[str], accepted: Sequence[str]
) -> Iterator[str]:
    """Yield a sentence for every difference that was accepted."""
    for names, found in _grouped([*_unlike(used(rows), metrics, ())] if accepted else []):
        yield (
            f"Compared although they differ, by --accept {' '.join(accepted)}: {labels(names)}, "
            f"whose {' and whose '.join(found.differences)} are of {found.one} and of {found.other}"
        )


def used(rows: Sequence[Row]) -> list[Evaluated]:
    """Return the evaluations that have any of the rows, once each."""
    return list(dict.fromkeys(place for row in rows for place in row.places))


def _other_test_set(one: Evaluated, other: Evaluated) -> str:
    mine, theirs = one.summary.test_set, other.summary.test_set
    said = []
    if mine.keys != theirs.keys:
        said.append(
            f"n {mine.n:,} and {theirs.n:,}, digest of the names {mine.keys[:12]} and "
            f"{theirs.keys[:12]}"
        )
    if mine.hq and theirs.hq and mine.hq != theirs.hq:
        said.append(
            f"reference of HQ pictures {mine.hq[:12]} ({_reference(one)}) and {theirs.hq[:12]} "
            f"({_reference(other)})"
        )
    if not said:
        return ""
    return (
        f"{one.where} and {other.where} are of different test sets, whose numbers cannot be "
        f"compared: {'; '.join(said)}. Evaluate all methods on the same pictures against the same "
        "--reference, or make a table of each"
    )


def _reference(one: Evaluated) -> str:
    return str(one.summary.settings["sets.reference"])


def _unlike(
    places: Sequence[Evaluated], metrics: Sequence[str], accepted: Sequence[str]
) -> Iterator[Unlike]:
    """Yield each metric of two evaluations whose fingerprints differ in more than is accepted."""
    for metric in metrics:
        having = [(place, mark) for place in places if (mark := _fingerprint(place, metric))]
        for (one, mine), (other, theirs) in combinations(having, 2):
            same = {name: getattr(mine, name) for name in accepted}
            if found := differing(mine, replace(theirs, **same)):
                yield Unlike(metric, one.where, other.where, tuple(found))


def _fingerprint(place: Evaluated, metric: str) -> Fingerprint | None:
    """Return the fingerprint of a metric, which all methods of an evaluation share."""
    for method in place.summary.methods.values():
        if metric in method.values:
            return method.values[metric].fingerprint
    return None


def _grouped(unlike: Sequence[Unlike]) -> Iterator[tuple[list[str], Unlike]]:
    """Yield the metrics that differ in the same, and one of them."""
    groups: dict[Unlike, list[str]] = {}
    for one in unlike:
        groups.setdefault(one._replace(metric=""), []).append(one.metric)
    for found, names in groups.items():
        yield names, found


def _refusal(unlike: Sequence[Unlike]) -> str:
    said = [
        f"{labels(names)}: {', '.join(found.differences)}, in {found.one} and in {found.other}"
        for names, found in _grouped(unlike)
    ]
    parts = dict.fromkeys(text.split(" ", 1)[0] for one in unlike for text in one.differences)
    todo = dict.fromkeys(REMEDIES.get(part, ANOTHER_VERSION) for part in parts)
    return (
        "values of unequal fingerprints are not compared. "
        f"{'. '.join(said)}. What to do: {'; '.join(todo)}; or leave these metrics out by --metrics"
    )


def _without_common(places: Sequence[Evaluated], metrics: Sequence[str]) -> str:
    """Say which evaluation shares no metric with any other; "" if there is none such."""
    having = {place: [name for name in metrics if _fingerprint(place, name)] for place in places}
    for place, mine in having.items():
        others = [name for other in places if other is not place for name in having[other]]
        if not set(mine) & set(others):
            return (
                f"{place.where} has {_named(place, mine)}, and the others have "
                f"{', '.join(dict.fromkeys(others)) or 'none of the metrics'}: there is nothing to "
                "compare. A metric and a variant of it are two metrics; evaluate the same ones in "
                "all"
            )
    return ""


def _named(place: Evaluated, metrics: Sequence[str]) -> str:
    """List metrics with their variants."""
    found = [(name, _fingerprint(place, name)) for name in metrics]
    said = [f"{name} ({mark.variant})" if mark and mark.variant else name for name, mark in found]
    return ", ".join(said) or "none of the metrics"
