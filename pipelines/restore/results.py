"""What became of every picture of a job: a file that grows by a line for each.

A job that is continued reads it to learn what is left to do. In a bucket it is a file of this
machine that is sent there now and then (`infra.growing`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from datasets.sources import ImageRef
from datasets.unusable import TRANSIENT
from infra.config import from_dict
from infra.growing import GrowingLines, complete_lines
from infra.paths import AnyPath

AGAIN = TRANSIENT | {"too_small"}
"""Reasons for which the next run tries a picture again: --min-face may be another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What became of one picture."""

    key: str
    """Of the picture."""
    bytes: int
    """Length of the input file."""
    stamp: int
    """Of the input file; a changed file is restored anew."""
    files: list[str] = field(default_factory=list)
    """Names of what was written; of a picture that failed for a reason that may pass, those of the
    run before."""
    reason: str = ""
    """Why it failed, in a word; empty where it did not."""
    detail: str = ""
    """The same in a sentence."""
    faces: list[dict[str, Any]] = field(default_factory=list)
    """What is known of each face, as in KEY.json."""
    notes: list[str] = field(default_factory=list)
    """What a user should know, in sentences."""

    @property
    def failed_faces(self) -> list[dict[str, Any]]:
        """Those of its faces that were to be restored and could not be."""
        return [face for face in self.faces if face.get("outcome") == "failed"]


def by_key(text: bytes) -> dict[str, Result]:
    """Read the complete lines of a file of results; the last result of a picture counts."""
    return _by_key(complete_lines(text))


def _by_key(lines: Iterable[bytes]) -> dict[str, Result]:
    results = [from_dict(Result, json.loads(line)) for line in lines]
    return {result.key: result for result in results}


def left(refs: Iterable[ImageRef], known: Mapping[str, Result], there: Set[str]) -> list[ImageRef]:
    """Return the pictures that have no result, have changed, or may do better now.

    Args:
        refs: pictures.
        known: their results so far.
        there: the names of the files in the output folder.
    """

    def is_done(ref: ImageRef) -> bool:
        result = known.get(ref.key)
        if result is None or result.reason in AGAIN or not there >= set(result.files):
            return False
        return (result.bytes, result.stamp) == (ref.size, ref.stamp)

    return [ref for ref in refs if not is_done(ref)]


class Results(GrowingLines):
    """The file of results, open for appending inside a `with` block.

    Args:
        path: the file; it is made if it is not there.
    """

    def __init__(self, path: AnyPath) -> None:
        super().__init__(path)
        self.by_key: dict[str, Result] = {}

    def take(self, lines: Sequence[bytes], where: str) -> None:
        """Read the results of the file."""
        self.by_key = _by_key(lines)

    def superseded(self, result: Result) -> list[str]:
        """Name the files that an earlier result of the picture left, and that this one has not."""
        earlier = self.by_key.get(result.key)
        return [] if earlier is None else [n for n in earlier.files if n not in result.files]

    def kept(self, result: Result) -> Result:
        """Return a result with the files of the run before, if it failed for what may pass."""
        earlier = self.by_key.get(result.key)
        if earlier is None or result.reason not in TRANSIENT:
            return result
        return replace(result, files=earlier.files)

    def append(self, results: Sequence[Result]) -> None:
        """Add results; they are on this machine's disk on return."""
        self.write(asdict(result) for result in results)
        self.by_key |= {result.key: result for result in results}
