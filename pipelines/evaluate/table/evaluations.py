"""The evaluations of a table: their summaries, their values picture by picture, and their rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra import paths
from infra.errors import UsageError
from models.metrics.catalog import METRICS
from pipelines.evaluate.bootstrap import Floats, mean_of_defined
from pipelines.evaluate.differences import pooled
from pipelines.evaluate.pairs import keys_digest
from pipelines.evaluate.summary import SUMMARY, VALUES, Method, Value, read_summary

AGAIN = "run its `python -m pipelines.evaluate` again, which measures nothing anew"


class Evaluated:
    """A finished evaluation.

    Args:
        where: its folder, as the user gave it.

    Raises:
        UsageError: no summary, one of another version, or metrics that this version has not.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.path = paths.path_of(where)
        self.summary = read_summary(self.path)
        if unknown := [name for name in self.summary.metrics() if name not in METRICS]:
            raise UsageError(
                f"{self.path / SUMMARY}: has {', '.join(unknown)}, which this version of the "
                "program does not know; use the version that evaluated"
            )

    @property
    def resamples(self) -> int:
        """Return how many resamples its intervals are of."""
        return int(self.summary.settings["measure.bootstrap"])

    def column(self, method: str, metric: str) -> Floats:
        """Return a metric's values of a method's pictures, in the order of their keys; NaN: none.

        Raises:
            UsageError: the table of values is missing, damaged, or not that of the summary.
        """
        name = self.path / VALUES
        try:
            rows = self._values.filter(pc.equal(self._values["method"], method)).sort_by("key")
            keys, values = rows["key"].to_pylist(), rows[metric].to_numpy()
        except (OSError, KeyError, pa.ArrowException) as error:
            raise UsageError(f"{name}: cannot be read ({error}); {AGAIN}") from error
        said = self.summary.methods[method].values[metric].value
        found = float(pooled(metric, mean_of_defined(values)))
        is_same = math.isnan(found) if said is None else math.isclose(found, said, rel_tol=1e-9)
        if keys_digest(keys) != self.summary.test_set.keys or not is_same:
            raise UsageError(
                f"{name}: its {metric} of {method} is not that of {SUMMARY} beside it; {AGAIN}"
            )
        return np.asarray(values, dtype=np.float64)

    @cached_property
    def _values(self) -> pa.Table:
        with paths.fetched(self.path / VALUES) as local:
            return pq.read_table(local)


@dataclass(frozen=True, slots=True)
class Row:
    """A method, and the evaluations that have it: several, if they have the same pictures."""

    method: str
    places: tuple[Evaluated, ...]

    def place(self, metric: str) -> Evaluated | None:
        """Return the first evaluation that has a metric of it."""
        having = (one for one in self.places if metric in self.found(one).values)
        return next(having, None)

    def found(self, place: Evaluated) -> Method:
        """Return what an evaluation has of it."""
        return place.summary.methods[self.method]

    def value(self, metric: str) -> Value | None:
        """Return its value of a metric; None: no evaluation has it."""
        place = self.place(metric)
        return None if place is None else self.found(place).values[metric]


def opened(where: Sequence[str]) -> list[Evaluated]:
    """Open evaluations.

    Raises:
        UsageError: see `Evaluated`; or a folder is given twice.
    """
    found = [Evaluated(one) for one in where]
    paths_of = [str(one.path) for one in found]
    if twice := [one for one in paths_of if paths_of.count(one) > 1]:
        raise UsageError(f"{twice[0]}: given twice; give each evaluation once")
    return found


def rows(evaluations: Sequence[Evaluated], wanted: Sequence[str]) -> list[Row]:
    """List the methods of evaluations.

    Args:
        evaluations: where to look.
        wanted: names of methods, in the order of the rows; none for all.

    Raises:
        UsageError: no evaluation has a wanted method, or two have other pictures of one name.
    """
    names = [name for one in evaluations for name in one.summary.methods]
    if lacking := [name for name in wanted if name not in names]:
        raise UsageError(
            f"--methods {lacking[0]}: no evaluation has it; choose of "
            f"{', '.join(dict.fromkeys(names))}"
        )
    return [
        _row(name, [one for one in evaluations if name in one.summary.methods])
        for name in dict.fromkeys(wanted or names)
    ]


def _row(method: str, places: list[Evaluated]) -> Row:
    first = places[0]
    mine = first.summary.methods[method]
    for other in places[1:]:
        theirs = other.summary.methods[method]
        if theirs.pixels != mine.pixels:
            raise UsageError(
                f"two methods are called {method}: {mine.folder} in {first.where} and "
                f"{theirs.folder} in {other.where} have other pictures. Evaluate one of them again "
                "under another name, as --restored NAME=FOLDER into the same output, which "
                "measures nothing anew; or leave the name out by --methods"
            )
    return Row(method, tuple(places))
