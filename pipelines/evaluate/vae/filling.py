"""A folder that is filled with pictures, one made of each: by units of work that can be done again.

FOLDER/KEY.png             a picture
RECORDS/UNIT.json          what a finished unit has written, and the facts of each of its pictures

A unit's name is a digest of all that its pictures depend on. So it is done if its record is there
and its pictures have the recorded lengths; a unit of changed inputs has another name.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from datasets.decoding import Pixels, decode, encode_png
from datasets.fetching import Fetch, read_ahead
from datasets.folders import contents
from datasets.sources import ImageRef
from datasets.unusable import UnusableImage
from infra.ahead import map_ahead
from infra.config import digest, from_dict, pretty_json
from infra.paths import AnyPath, path_of, read_all, sizes, write_bytes
from pipelines.evaluate.worker import Failure
from pipelines.jobs.attempts import Attempt, attempt
from pipelines.jobs.stage import Stopwatch

UNIT = 8
"""Pictures of a unit: a kill can lose as many a worker. The same for every number of workers, so
that a job goes on with another number."""
THREADS = 4
"""That decode, and as many that encode, beside a GPU."""

Make = Callable[[Pixels], tuple[Pixels, Any]]
"""From RGB uint8 [H, W, 3] to what is written and its facts, JSON values; or `UnusableImage`."""
Unit = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A folder that is filled."""

    name: str
    """Of the stage."""
    folder: str
    records: str
    notes: str
    """Folder for the notes of `pipelines.jobs.attempts`."""

    def unfinished(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the units that are to be done."""
        there = png_sizes(path_of(self.folder))
        known = self._records(units)
        return [
            unit
            for unit in units
            if any(there.get(key) != size for key, size in known.get(unit["name"], LACKING).items())
        ]

    def facts(self, units: Sequence[Unit]) -> dict[str, Any]:
        """Return the facts of all pictures of finished units, by key."""
        found = self._read(units)
        return {key: fact for unit in units for key, fact in found[unit["name"]]["facts"].items()}

    def _records(self, units: Sequence[Unit]) -> dict[str, dict[str, int]]:
        return {name: record["bytes"] for name, record in self._read(units).items()}

    def _read(self, units: Sequence[Unit]) -> dict[str, dict[str, Any]]:
        records = path_of(self.records)
        there = sizes(records)
        names = [unit["name"] for unit in units if f"{unit['name']}.json" in there]
        read = read_all([records / f"{name}.json" for name in names])
        return {name: json.loads(data) for name, data in zip(names, read, strict=True)}


LACKING: Mapping[str, int] = {"": -1}
"""Of a unit without a record: a picture that is not there."""


def png_sizes(folder: AnyPath) -> dict[str, int]:
    """Return the length in bytes of every PNG below a folder, by key; none where it is not."""
    if not folder.is_dir():
        return {}
    names = {found.name: found.size for found, _ in contents(folder)}
    return {name[:-4]: size for name, size in names.items() if name.endswith(".png")}


def as_units(refs: Sequence[ImageRef], made_of: Sequence[object]) -> list[Unit]:
    """Group pictures to units of work.

    Args:
        refs: the pictures, by key.
        made_of: what each result depends on, JSON values; a unit's name is a digest of those.
    """
    parts = [slice(first, first + UNIT) for first in range(0, len(refs), UNIT)]
    return [
        {
            "name": digest([made_of[part], [ref.key for ref in refs[part]]])[:16],
            "what": f"{len(refs[part])} pictures from {refs[part][0].key} on",
            "images": [asdict(ref) for ref in refs[part]],
        }
        for part in parts
    ]


class _Made(NamedTuple):
    key: str
    size: int
    facts: Any


class Filler:
    """Does units: reads, decodes, makes, and writes PNG files, then the unit's record.

    Args:
        target: what is filled.
        session: name of the job that is running.
        threads: that decode, and as many that encode, while a GPU computes; 0 on CPUs.
    """

    def __init__(self, target: Target, session: str, threads: int = 0) -> None:
        self.target, self.session, self.threads = target, session, threads
        self.folder = path_of(target.folder)
        self.watch = Stopwatch()

    def __call__(self, unit: Unit, make: Make) -> dict[str, Any]:
        """Do a unit, of which nothing is recorded unless all its pictures could be made."""
        refs = [from_dict(ImageRef, values) for values in unit["images"]]
        notes, target = path_of(self.target.notes), self.target
        with attempt(notes, unit["name"], self.session, unit["what"]) as begun:
            if begun.is_careful:
                found = [one for ref in refs for one in self._alone(ref, begun, make)]
            else:
                found = list(self._together(refs, make, self.threads))
            made = [one for one in found if isinstance(one, _Made)]
            failures = [one for one in found if isinstance(one, Failure)]
            if not failures:
                record = {
                    "bytes": {one.key: one.size for one in made},
                    "facts": {one.key: one.facts for one in made},
                }
                write_bytes(path_of(target.records) / f"{unit['name']}.json", pretty_json(record))
        return {
            "done": len(refs),
            "seconds": self.watch.take(),
            "failures": [asdict(one) for one in failures],
        }

    def _alone(self, ref: ImageRef, begun: Attempt, make: Make) -> list[_Made | Failure]:
        """Make a picture of a unit that has killed a process; nothing else is under way."""
        if begun.has_killed(ref.key):
            return [self._failure(ref, UnusableImage("crashed", "it killed the process twice"))]
        with begun.doing(ref.key):
            return list(self._together([ref], make, 0))

    def _together(
        self, refs: Sequence[ImageRef], make: Make, threads: int
    ) -> Iterator[_Made | Failure]:
        opened = map_ahead(self._opened, read_ahead(refs), threads=threads)
        made = ((ref, self._tried(ref, pixels, make)) for ref, pixels in opened)
        yield from map_ahead(self._written, made, threads=threads)

    def _opened(self, read: tuple[ImageRef, Fetch]) -> tuple[ImageRef, Pixels | Failure]:
        ref, fetch = read
        try:
            with self.watch("read"):
                data = fetch()
            with self.watch("decode"):
                return ref, decode(data)
        except UnusableImage as error:
            return ref, self._failure(ref, error)

    def _tried(
        self, ref: ImageRef, pixels: Pixels | Failure, make: Make
    ) -> tuple[Pixels, Any] | Failure:
        if isinstance(pixels, Failure):
            return pixels
        try:
            with self.watch(self.target.name):
                return make(pixels)
        except UnusableImage as error:
            return self._failure(ref, error)

    def _written(self, made: tuple[ImageRef, tuple[Pixels, Any] | Failure]) -> _Made | Failure:
        ref, result = made
        if isinstance(result, Failure):
            return result
        with self.watch("write"):
            data = encode_png(result[0])
            write_bytes(self.folder / f"{ref.key}.png", data)
        return _Made(ref.key, len(data), result[1])

    def _failure(self, ref: ImageRef, error: UnusableImage) -> Failure:
        said = str(error).removeprefix(f"{error.reason}: ")
        return Failure(option=ref.origin, key=ref.key, reason=error.reason, detail=said)
