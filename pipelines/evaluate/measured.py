"""What is measured of every picture so far: a file that grows by a line for each.

A picture is known by its mark, so that a changed file is measured anew and a further metric or
method adds to what is there. A value is known by its metric's identity and the mark of the picture
that it was compared with.
"""

import json
import os
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from infra.errors import UserError
from infra.growing import GrowingFile
from infra.paths import AnyPath
from infra.storage import explained


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


class MeasuredFile:
    """The file of measurements, open for appending inside a `with` block.

    A line that a kill left unfinished is cut off.

    Args:
        path: the file; it is made if it is not there.
    """

    def __init__(self, path: AnyPath) -> None:
        self._growing = GrowingFile(path)
        self.by_mark: dict[str, Measured] = {}

    def __enter__(self) -> Self:
        """Take the file for this process, and read what it holds.

        Raises:
            UserError: another process writes it, it cannot be written, or it is damaged.
        """
        with ExitStack() as opened:
            opened.enter_context(self._growing.held())
            local = self._growing.local
            try:
                local.parent.mkdir(parents=True, exist_ok=True)
                self._file = opened.enter_context(local.open("a+b"))
            except OSError as error:
                raise explained(error, local) from error
            self._file.seek(0)
            text = self._file.read()
            complete = text[: text.rfind(b"\n") + 1]
            for number, line in enumerate(complete.splitlines(), start=1):
                self._add(_read(line, f"{local}, line {number}"))
            self._file.truncate(len(complete))
            self._open = opened.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

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
        lines = b"".join(json.dumps(asdict(one)).encode() + b"\n" for one in measured)
        self._file.write(lines)
        self._file.flush()
        os.fsync(self._file.fileno())
        for one in measured:
            self._add(one)
        self._growing.send_now_and_then()

    def _add(self, one: Measured) -> None:
        earlier = self.by_mark.get(one.mark)
        self.by_mark[one.mark] = one if earlier is None else earlier.with_more(one)


def _read(line: bytes, where: str) -> Measured:
    try:
        return Measured.from_values(json.loads(line))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where}: damaged ({error}); delete this line to measure its picture anew, or the file"
        ) from error
