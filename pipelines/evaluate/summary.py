"""The numbers of an evaluation, each with all that it depends on: OUT/summary.json.

Two values are compared only if their fingerprints are equal. Elsewhere the same pictures have
scored an FID of 49.81 or 22.24, by which pictures they were compared with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from infra.config import from_dict, pretty_json, read_object
from infra.errors import UsageError
from infra.paths import AnyPath

SUMMARY, VALUES, PAGE = "summary.json", "values.parquet", "report.html"
VERSION = 1
FEWEST = 6
"""Pictures of which an interval can support a difference: that five of five happen to agree has a
chance of 1 in 16, more than the 5 % outside an interval, and of one picture it has no width."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """Everything that two values must share to be comparable."""

    metric: str
    variant: str
    implementation: str
    weights: str
    """SHA-256 of the metric's weights; empty for a formula."""
    resize: str
    reference: str
    """SHA-256 of what the pictures are compared with, by their levels; of their keys for a metric
    that looks at nothing else."""
    n: int
    """Pictures of the test set."""
    dtype: str
    device: str


def differing(one: Fingerprint, other: Fingerprint) -> list[str]:
    """Name what differs between two fingerprints, with both values."""
    return [
        f"{part.name} {short(getattr(one, part.name))} and {short(getattr(other, part.name))}"
        for part in fields(Fingerprint)
        if getattr(one, part.name) != getattr(other, part.name)
    ]


def short(value: object) -> str:
    """Write a part of a fingerprint: of a SHA-256 the first 12 digits, which tell any two apart."""
    text = str(value)
    return text[:12] if len(text) == 64 else text or "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A metric of a method."""

    value: float | None
    """None where no picture has one."""
    low: float | None = None
    """Of the interval of 95 %; None without one."""
    high: float | None = None
    undefined: int = 0
    """Pictures without a value, which the mean leaves out."""
    fingerprint: Fingerprint
    note: str = ""
    """What a user should know of it, in a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A method's numbers."""

    folder: str
    pixels: str
    """SHA-256 of its pictures' keys and levels."""
    values: Mapping[str, Value]
    """By metric."""
    restored: Mapping[str, Any] = field(default_factory=dict)
    """What its pictures depend on beside the inputs, if `pipelines.restore` has made them; "model"
    is the digest of the bundle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How much two methods differ on the same pictures: the first minus the second."""

    metric: str
    first: str
    second: str
    value: float
    low: float
    high: float
    n: int
    """Pictures on which both are defined."""

    @property
    def is_clear(self) -> bool:
        """Tell whether the interval leaves out 0, and is of enough pictures to be believed."""
        return self.n >= FEWEST and (self.low > 0 or self.high < 0)

    def turned(self) -> "Difference":
        """Return the second minus the first."""
        return replace(
            self,
            first=self.second,
            second=self.first,
            value=-self.value,
            low=-self.high,
            high=-self.low,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """A metric of a method on the pictures whose degradation lies in a range."""

    method: str
    metric: str
    by: str
    """Parameter of the degradation."""
    at_least: float
    at_most: float
    """The range's ends, as the least and the largest value in it."""
    n: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TestSet:
    """Which pictures: by digest and number, whatever they are called."""

    protocol: str
    n: int
    keys: str
    """SHA-256 of the keys."""
    hq: str
    """SHA-256 of the HQ pictures' keys and levels; empty without HQ."""
    sizes: Mapping[str, int]
    """Restored pictures by their size, such as "512 x 512"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """All numbers of an evaluation."""

    version: int = VERSION
    test_set: TestSet
    methods: Mapping[str, Method]
    missing: Mapping[str, str]
    """Metrics that could not be computed, and why."""
    differences: Sequence[Difference] = ()
    slices: Sequence[Slice] = ()
    notes: Sequence[str] = ()
    """What a user should know, in sentences."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The configuration, flat."""

    def metrics(self) -> list[str]:
        """Return the metrics that any method has, in the order of the catalogue."""
        return list(dict.fromkeys(name for one in self.methods.values() for name in one.values))

    def difference(self, metric: str, one: str, other: str) -> Difference | None:
        """Return by how much a method's value is above another's; None where that is not known."""
        for found in self.differences:
            if found.metric == metric and {found.first, found.second} == {one, other}:
                return found if found.first == one else found.turned()
        return None


def encoded(summary: Summary) -> bytes:
    """Return a summary as JSON."""
    return pretty_json(asdict(summary))


def read_summary(folder: AnyPath) -> Summary:
    """Read the summary of an evaluation.

    Raises:
        UsageError: there is none, or it is of another version.
    """
    path = folder / SUMMARY
    if not path.exists():
        raise UsageError(
            f"{folder}: no {SUMMARY} in it; give the --output of a finished "
            "`python -m pipelines.evaluate`"
        )
    found = read_object(path, str(path))
    if found.get("version") != VERSION:
        raise UsageError(
            f"{path}: version {found.get('version')}, expected {VERSION}; evaluate "
            "again into the same folder, which measures nothing anew"
        )
    return from_dict(Summary, found, str(path))
