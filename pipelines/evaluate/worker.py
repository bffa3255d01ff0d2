"""The worker that measures the pictures of a unit, each decoded once for all metrics.

A group of a unit is a key: its restored picture by every method, and those that they are compared
with. On a GPU pictures of one size share a pass of a metric. On a CPU a pass is one picture, so
that no value depends on its neighbours. Doing a unit again writes and returns the same.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.fetching import READERS, Fetch, read_ahead
from datasets.sources import ImageRef
from datasets.unusable import UnusableImage
from infra.ahead import map_ahead
from infra.config import digest, from_dict
from infra.errors import UserError
from infra.paths import path_of, write_bytes
from models.metrics.catalog import METRICS
from pipelines.evaluate.decoding import Decoded, decoded
from pipelines.evaluate.judges import Judges, features_identity, identity
from pipelines.evaluate.measured import Measured, value_name
from pipelines.evaluate.pairs import mark
from pipelines.jobs.attempts import Attempt, attempt
from pipelines.jobs.kernels import same_in_every_run
from pipelines.jobs.stage import Stopwatch
from pipelines.restore.reasons import sentence

BATCH_ON_GPU, DECODERS_BESIDE_A_GPU = 8, 8


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureSpec:
    """What all units of a job share."""

    digests: Mapping[str, str]
    """Of the weights of each metric."""
    weights: str
    device: str
    batch: int
    """Pictures in a pass."""
    threads: int
    features: str
    """Folder of the files of features."""
    notes: str
    """Folder for the notes of `pipelines.jobs.attempts`."""
    session: str
    """Name of the job that is running."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The pictures of one key, and what is to be measured of them."""

    key: str
    pictures: Mapping[str, ImageRef]
    """By role: "hq", "posterior_mean", "distribution", or "=NAME" for the method NAME."""
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By role: the metrics of single pictures that are wanted."""
    features: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By role: metrics of sets whose features are wanted, one for each network."""

    @property
    def name(self) -> str:
        """Tell it from other groups; another set may have a picture of the same key."""
        return f"{self.key} of the distribution" if "distribution" in self.pictures else self.key


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A picture that cannot be measured."""

    option: str
    """That named its folder."""
    key: str
    reason: str
    """In a word."""
    detail: str
    """In words."""


@dataclass(slots=True)
class Opened:
    """A group whose pictures are decoded."""

    group: Group
    pictures: dict[str, Decoded]
    values: dict[str, dict[str, float | None]]
    """By role and name, as they are computed."""
    features: dict[str, dict[str, tuple[str, int]]]


class MeasurePictures:
    """Measures the groups of units with the metrics that they ask for."""

    def __init__(self, spec: MeasureSpec) -> None:
        same_in_every_run(spec.threads)
        if spec.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: no GPU on this worker; give --device cpu")
        self.spec = spec
        self.judges = Judges(spec.digests, spec.weights, spec.device)
        self.watch = Stopwatch()

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Measure ``unit["groups"]``; returns a row for each picture, and those that cannot be."""
        groups = [from_dict(Group, values) for values in unit["groups"]]
        spec, failures = self.spec, list[Failure]()
        files = FeatureFiles(unit["name"])
        with attempt(path_of(spec.notes), unit["name"], spec.session, unit["what"]) as begun:
            if begun.is_careful:
                parts = (self._alone(group, begun, files, failures) for group in groups)
                measured = [one for part in parts for one in part]
            else:
                measured = list(self._together(groups, files, failures))
            files.write(spec.features)
        return {
            "done": len(measured),
            "seconds": self.watch.take(),
            "measured": [asdict(one) for one in measured],
            "failures": [asdict(one) for one in failures],
        }

    def _alone(
        self, group: Group, begun: Attempt, files: "FeatureFiles", failures: list[Failure]
    ) -> list[Measured]:
        """Measure a group of a unit that has killed a process; nothing else is under way."""
        if begun.has_killed(group.name):
            said = (
                "it, or another picture of its key, killed the process that measured them, twice; "
                "save it anew in another program"
            )
            failures += [
                Failure(option=ref.origin, key=group.key, reason="crashed", detail=said)
                for ref in group.pictures.values()
            ]
            return []
        with begun.doing(group.name):
            return list(self._together([group], files, failures))

    def _together(
        self, groups: Sequence[Group], files: "FeatureFiles", failures: list[Failure]
    ) -> Iterator[Measured]:
        threads = DECODERS_BESIDE_A_GPU if self.spec.device == "cuda" else 0
        refs = [ref for group in groups for ref in group.pictures.values()]
        reading = read_ahead(refs, max(READERS, self.spec.batch))
        found = map_ahead(self._decoded, reading, threads=threads, ahead=2 * threads)
        opened: list[Opened] = []
        for group in groups:
            one = _opened(group, {role: next(found) for role in group.pictures}, failures)
            opened += [one] if one is not None else []
            if len(opened) >= self.spec.batch:
                yield from self._pass(opened, files)
                opened = []
        yield from self._pass(opened, files)

    def _decoded(self, read: tuple[ImageRef, Fetch]) -> Decoded | Failure:
        ref, fetch = read
        try:
            with self.watch("read"):
                data = fetch()
            with self.watch("decode"):
                return decoded(data)
        except UnusableImage as error:
            _, _, known = str(error).partition(": ")
            detail = sentence(error.reason, known)
            return Failure(option=ref.origin, key=ref.key, reason=error.reason, detail=detail)

    @torch.no_grad()
    def _pass(self, opened: Sequence[Opened], files: "FeatureFiles") -> Iterator[Measured]:
        """Compute all that is wanted of groups; yields a row for each picture."""
        for role, name in _wanted(opened, "values"):
            wanting = [one for one in opened if name in one.group.values.get(role, ())]
            self._values(role, name, wanting)
        for role, name in _wanted(opened, "features"):
            wanting = [one for one in opened if name in one.group.features.get(role, ())]
            self._features(role, name, wanting, files)
        for one in opened:
            for role, picture in one.pictures.items():
                yield Measured(
                    mark=mark(one.group.pictures[role]),
                    key=one.group.key,
                    pixels=picture.sha256(),
                    size=picture.size,
                    values=one.values.get(role, {}),
                    features=one.features.get(role, {}),
                    notes=picture.notes,
                )

    def _values(self, role: str, name: str, opened: Sequence[Opened]) -> None:
        metric, against = METRICS[name], METRICS[name].against
        who = identity(name, self.spec.digests[name], self.spec.device)
        for part in _by_size(opened, role):
            pictures = [self._stacked(part, role)]
            pictures += [self._stacked(part, against)] if metric.needs_reference else []
            if min(pictures[0].shape[2:]) < metric.min_side:
                values = [math.nan] * len(part)
            else:
                with self.watch(name):
                    values = self.judges.of_images(name).compute(*pictures).double().tolist()
            for one, value in zip(part, values, strict=True):
                compared = mark(one.group.pictures.get(against))
                known = one.values.setdefault(role, {})
                known[value_name(who, compared)] = value if math.isfinite(value) else None

    def _features(
        self, role: str, name: str, opened: Sequence[Opened], files: "FeatureFiles"
    ) -> None:
        who = features_identity(name, self.spec.digests[name], self.spec.device)
        for part in _by_size(opened, role):
            with self.watch(METRICS[name].features):
                rows = self.judges.of_sets(name).features(self._stacked(part, role)).cpu()
            for one, row in zip(part, rows, strict=True):
                one.features.setdefault(role, {})[who] = files.add(who, row)

    def _stacked(self, part: Sequence[Opened], role: str) -> Tensor:
        """Return pictures of one size as uint8 [B, 3, H, W] where they are measured."""
        levels = np.stack([one.pictures[role].pixels for one in part])
        return torch.from_numpy(levels).permute(0, 3, 1, 2).to(self.spec.device)


class FeatureFiles:
    """The features of a unit: float32 [n, D] for each network, in a file of its own.

    Args:
        unit: its name.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._rows: dict[str, list[Tensor]] = {}

    def add(self, features: str, row: Tensor) -> tuple[str, int]:
        """Take the features of a picture [D]; returns the file's name and the row in it."""
        rows = self._rows.setdefault(features, [])
        rows.append(row)
        return self._name(features), len(rows) - 1

    def write(self, folder: str) -> None:
        """Write the files."""
        for features, rows in self._rows.items():
            buffer = io.BytesIO()
            np.save(buffer, torch.stack(rows).float().numpy())
            write_bytes(path_of(folder) / self._name(features), buffer.getvalue())

    def _name(self, features: str) -> str:
        return f"{digest([self._unit, features])[:16]}.npy"


def _opened(
    group: Group, found: Mapping[str, Decoded | Failure], failures: list[Failure]
) -> Opened | None:
    """Return a group of which all is sound; else note what is not, and return None."""
    bad = [one for one in found.values() if isinstance(one, Failure)]
    pictures = {role: one for role, one in found.items() if isinstance(one, Decoded)}
    failures += bad or [*_unequal(group, pictures)]
    if bad or any(True for _ in _unequal(group, pictures)):
        return None
    return Opened(group, pictures, {}, {})


def _unequal(group: Group, pictures: Mapping[str, Decoded]) -> Iterator[Failure]:
    """Yield a failure for each picture that has not the size of one it is compared with."""
    for role, names in group.values.items():
        for against in sorted({METRICS[name].against for name in names} & pictures.keys()):
            mine, other = pictures[role], pictures[against]
            if mine.size != other.size:
                what = group.pictures[against].origin
                yield Failure(
                    option=group.pictures[role].origin,
                    key=group.key,
                    reason="unequal_sizes",
                    detail=f"{_size(mine)}, and the picture of {what} is {_size(other)}; metrics "
                    "compare pictures of one size: resize one of them as you would publish it",
                )


def _size(picture: Decoded) -> str:
    return f"{picture.size[0]} x {picture.size[1]} pixels"


def _wanted(opened: Sequence[Opened], what: str) -> list[tuple[str, str]]:
    """List each role and metric that any of the groups wants."""
    return list(
        dict.fromkeys(
            (role, name)
            for one in opened
            for role, names in getattr(one.group, what).items()
            for name in names
        )
    )


def _by_size(opened: Sequence[Opened], role: str) -> Iterator[list[Opened]]:
    """Group those whose picture of a role has one size."""
    ordered = sorted(opened, key=lambda one: one.pictures[role].size)
    for _, part in groupby(ordered, key=lambda one: one.pictures[role].size):
        yield list(part)
