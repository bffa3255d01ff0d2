"""What is measured of every picture so far: a file that grows by a line for each.

A picture is known by its mark, so that a changed file is measured anew and a further metric or
method adds to what is there. A value is known by its metric's identity and the mark of the picture
that it was compared with.
"""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from infra.errors import UserError
from infra.growing import GrowingLines
from infra.paths import AnyPath


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What is known of one picture."""

    mark: str
    """Of the picture."""
    key: str
    pixels: str
    """SHA-256 of its RGB levels, row by row."""
    size: tuple[int, int]
    """Width and height."""
    values: Mapping[str, float | None] = field(default_factory=dict)
    """By `value_name`; None where a metric is not defined."""
    features: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """By `judges.features_identity`: the name of a file of features, and the row in it."""
    notes: tuple[str, ...] = ()
    """What a user should know of the file, such as "grey"."""

    @classmethod
    def from_values(cls, found: dict[str, Any]) -> Self:
        """Build it from the values of a line or of a worker's answer."""
        features = {name: (file, row) for name, (file, row) in found.pop("features").items()}
        size, notes = tuple(found.pop("size")), tuple(found.pop("notes"))
        return cls(size=size, notes=notes, features=features, **found)

    def with_more(self, later: "Measured") -> "Measured":
        """Return it with what a later measurement adds."""
        return replace(
            later,
            values={**self.values, **later.values},
            features={**self.features, **later.features},
        )


def value_name(identity: str, against: str) -> str:
    """Name a value: the identity of its metric, and the mark of what it was compared with."""
    return f"{identity}:{against}" if against else identity


class MeasuredFile(GrowingLines):
    """The file of measurements, open for appending inside a `with` block.

    Args:
        path: the file; it is made if it is not there.
    """

    def __init__(self, path: AnyPath) -> None:
        super().__init__(path)
        self.by_mark: dict[str, Measured] = {}

    def take(self, lines: Sequence[bytes], where: str) -> None:
        """Read the measurements of the file."""
        self.by_mark = by_mark(lines, where)

    def forget_features(self, there: Container[str]) -> None:
        """Take features whose file is gone for not measured.

        Args:
            there: the names of the files that are there.
        """
        for name, one in self.by_mark.items():
            kept = {who: place for who, place in one.features.items() if place[0] in there}
            if len(kept) < len(one.features):
                self.by_mark[name] = replace(one, features=kept)

    def append(self, measured: Sequence[Measured]) -> None:
        """Add measurements; they are on this machine's disk on return."""
        self.write(asdict(one) for one in measured)
        for one in measured:
            _add(self.by_mark, one)


def by_mark(lines: Iterable[bytes], where: str) -> dict[str, Measured]:
    """Read the complete lines of a file of measurements.

    Args:
        lines: of the file.
        where: the file, for messages.

    Raises:
        UserError: a line is damaged.
    """
    known: dict[str, Measured] = {}
    for number, line in enumerate(lines, start=1):
        _add(known, _read(line, f"{where}, line {number}"))
    return known


def _add(known: dict[str, Measured], one: Measured) -> None:
    earlier = known.get(one.mark)
    known[one.mark] = one if earlier is None else earlier.with_more(one)


def _read(line: bytes, where: str) -> Measured:
    try:
        return Measured.from_values(json.loads(line))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where}: damaged ({error}); delete this line to measure its picture anew, or the file"
        ) from error
