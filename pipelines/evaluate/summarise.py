"""From what is measured to the numbers of a summary: means, intervals, differences, distances."""

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from datasets.test_sets import count_note
from infra import paths
from infra.config import flat, to_dict
from infra.paths import AnyPath
from models.metrics.catalog import METRICS
from pipelines.evaluate.bootstrap import (
    interval,
    mean_of_defined,
    recentred,
    resampled_means,
    resampled_rows,
)
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.differences import paired, paired_sets, pooled
from pipelines.evaluate.pairs import keys_digest, named_folders
from pipelines.evaluate.results import Floats, Results
from pipelines.evaluate.slices import slices
from pipelines.evaluate.summary import (
    Difference,
    Fingerprint,
    Method,
    Summary,
    TestSet,
    Value,
)
from pipelines.restore.config import STATE as MADE_BY_RESTORE

IDENTITY = "identity.json"  # of a job of `pipelines.restore`: what its pictures depend on

if TYPE_CHECKING:
    from models.metrics.catalog import Compared


def summarise(results: Results, config: EvaluateConfig) -> Summary:
    """Compute all numbers of an evaluation.

    Raises:
        UsageError: a table of degradations, or a file of statistics, that cannot be used.
    """
    work = _Summarising(results, config)
    measure = config.measure
    return Summary(
        test_set=work.test_set(),
        methods={name: work.method(name) for name in results.pairs.methods},
        missing=results.found.missing,
        differences=[*work.differences()],
        slices=[*slices(results, config.sets.degradations, measure.bootstrap)],
        notes=[*work.notes()],
        settings=flat(to_dict(config)),
    )


def how_restored(folder: AnyPath) -> dict[str, Any]:
    """Return what the pictures of a folder depend on, if `pipelines.restore` has made them."""
    state = folder / MADE_BY_RESTORE
    found = paths.read_if_there(state / IDENTITY) if state.is_dir() else None
    return {} if found is None else flat(json.loads(found))


class _Distance(NamedTuple):
    """How far a method's pictures are from the reference, as sets."""

    value: float | None
    """None where there is none."""
    resampled: Floats
    """Of resamples of its pictures; none without --set-bootstrap."""
    note: str


@dataclass
class _Summarising:
    results: Results
    config: EvaluateConfig

    @property
    def n(self) -> int:
        return len(self.results.keys)

    @cached_property
    def _digests(self) -> dict[str, str]:
        """Of what the metrics compare with: by `Metric.against`, and "set" for whole sets."""
        pairs = self.results.pairs
        found = {"none": keys_digest(pairs.keys), "hq": "", "posterior_mean": "", "set": ""}
        for role in ("hq", "posterior_mean"):
            if (refs := getattr(pairs, role)) is not None:
                found[role] = self.results.pixels(refs.values())
        if pairs.stored is not None:
            found["set"] = pairs.stored.sha256
        elif pairs.distribution is not None and self.results.metrics("set"):
            found["set"] = self.results.pixels(pairs.distribution.values())
        return found

    def test_set(self) -> TestSet:
        pairs = self.results.pairs
        pictures = [one for refs in pairs.methods.values() for one in refs.values()]
        sizes = Counter("{} x {}".format(*one.size) for one in self.results.measured(pictures))
        return TestSet(
            protocol=self.config.sets.protocol,
            n=self.n,
            keys=self._digests["none"],
            hq=self._digests["hq"],
            sizes=dict(sizes),
        )

    def method(self, name: str) -> Method:
        pairs = self.results.pairs
        folder = named_folders(self.config.sets.restored)[name]
        return Method(
            folder=folder,
            restored=how_restored(paths.path_of(folder)),
            pixels=self.results.pixels(pairs.methods[name].values()),
            values={
                metric: self._of_images(name, metric)
                if METRICS[metric].kind == "image"
                else self._of_sets(name, metric)
                for metric in METRICS
                if metric in self.results.found.digests
            },
        )

    def _fingerprint(self, name: str) -> Fingerprint:
        metric = METRICS[name]
        against = "set" if metric.kind == "set" else metric.against
        return Fingerprint(
            metric=name,
            variant=metric.variant,
            implementation=metric.implementation,
            weights=self.results.found.digests[name],
            resize=metric.resize,
            reference=self._digests[against],
            n=self.n,
            dtype=metric.dtype_on(self.results.device),
            device=self.results.device,
        )

    def _of_images(self, method: str, name: str) -> Value:
        values = self.results.column(method, name)
        undefined = int(np.isnan(values).sum())
        if undefined == self.n:
            return Value(
                value=None,
                undefined=undefined,
                fingerprint=self._fingerprint(name),
                note=self._why_undefined(method, name),
            )
        low, high = interval(pooled(name, self._resampled(values)))
        return Value(
            value=float(pooled(name, mean_of_defined(values))),
            low=low,
            high=high,
            undefined=undefined,
            fingerprint=self._fingerprint(name),
        )

    def _why_undefined(self, method: str, name: str) -> str:
        least, refs = METRICS[name].min_side, self.results.pairs.methods[method]
        side = min(min(one.size) for one in self.results.measured(refs.values()))
        if side < least:
            return f"needs {least} pixels on each side; the pictures have {side}"
        return "no picture has a value"

    def _resampled(self, *columns: Floats) -> Floats:
        return resampled_means(np.stack(columns, axis=1), self.config.measure.bootstrap)

    def _of_sets(self, method: str, name: str) -> Value:
        found = self._distances[name][method]
        if found.value is None:
            return Value(value=None, fingerprint=self._fingerprint(name), note=found.note)
        is_given = bool(len(found.resampled))
        low, high = interval(recentred(found.resampled, found.value)) if is_given else (None, None)
        return Value(
            value=found.value,
            low=low,
            high=high,
            fingerprint=self._fingerprint(name),
            note=found.note,
        )

    @cached_property
    def _distances(self) -> dict[str, dict[str, _Distance]]:
        """By metric of whole sets and method; the features of a network are read once."""
        networks: dict[str, list[str]] = {}
        for name in self.results.metrics("set"):
            networks.setdefault(METRICS[name].features, []).append(name)
        found: dict[str, dict[str, _Distance]] = {n: {} for n in self.results.metrics("set")}
        for names in networks.values():
            for method, refs in self.results.pairs.methods.items():
                features = torch.from_numpy(self.results.features([*refs.values()], names[0]))
                for name in names:
                    found[name][method] = self._distance(name, features)
        return found

    @cached_property
    def _compared(self) -> dict[tuple[str, str], "Compared"]:
        """What sets are compared with: by features, and by what is made of them."""
        return {}

    def _reference(self, name: str) -> "Compared":
        """Return what the sets of all methods are compared with, once for all of them."""
        metric = METRICS[name]
        what = (metric.features, metric.prepare)
        if what not in self._compared:
            self._compared[what] = self._made_reference(name)
        return self._compared[what]

    def _made_reference(self, name: str) -> "Compared":
        pairs = self.results.pairs
        if pairs.stored is not None:
            return pairs.stored.statistics
        refs = [*(pairs.distribution or {}).values()]
        return METRICS[name].prepared(torch.from_numpy(self.results.features(refs, name)))

    def _distance(self, name: str, mine: torch.Tensor) -> _Distance:
        distance = METRICS[name].distance_function()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                reference = self._reference(name)
                value = distance(mine, reference)
            except ValueError as error:  # one picture, or statistics of another network
                return _Distance(None, np.empty(0), str(error))
            again = resampled_rows(
                self.n,
                self.config.measure.set_bootstrap,
                lambda rows: distance(mine[rows], reference),
            )
        return _Distance(value, again, str(said[0].message) if said else "")

    def differences(self) -> Iterator[Difference]:
        """Yield the difference of every two methods in every metric that has an interval."""
        for name in self.results.metrics("image"):
            columns = {m: self.results.column(m, name) for m in self.results.pairs.methods}
            yield from paired(name, columns, self.config.measure.bootstrap)
        if self.config.measure.set_bootstrap:
            for name, found in self._distances.items():
                known = {
                    method: (one.value, one.resampled)
                    for method, one in found.items()
                    if one.value is not None
                }
                yield from paired_sets(name, known, self.n)

    def notes(self) -> Iterator[str]:
        sets, pairs = self.config.sets, self.results.pairs
        if said := count_note(sets.protocol, self.n):
            yield said
        if pairs.left_out:
            yield f"--common: {pairs.left_out:,} keys that not all folders have are left out"
        yield from self.results.notes()
