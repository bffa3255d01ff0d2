"""What is measured, by method and metric: columns over the keys, and features of whole sets."""

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datasets.shards import parquet_bytes
from datasets.sources import ImageRef
from infra.config import digest
from infra.errors import UserError
from infra.paths import AnyPath, read_all
from models.metrics.catalog import METRICS
from pipelines.evaluate.judges import Found, features_identity, identity
from pipelines.evaluate.measured import Measured, value_name
from pipelines.evaluate.pairs import METHOD, Pairs, mark

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Results:
    """Everything that is known of the pictures of an evaluation."""

    pairs: Pairs
    found: Found
    device: str
    known: Mapping[str, Measured]
    """By mark."""
    folder: AnyPath
    """Of the files of features."""

    @property
    def keys(self) -> list[str]:
        """Return the keys, in the order of all columns."""
        return self.pairs.keys

    def measured(self, refs: Iterable[ImageRef]) -> list[Measured]:
        """Return what is known of pictures."""
        return [self.known[mark(ref)] for ref in refs]

    def metrics(self, kind: str) -> list[str]:
        """Return the metrics of a kind that could be had, in the order of the catalogue."""
        return [n for n in METRICS if n in self.found.digests and METRICS[n].kind == kind]

    def column(self, method: str, name: str) -> Floats:
        """Return the values of a metric of single pictures [n]; NaN where it is not defined."""
        return self._columns[method][name]

    def columns(self, method: str) -> dict[str, Floats]:
        """Return the values of every metric of single pictures."""
        return self._columns[method]

    @cached_property
    def _columns(self) -> dict[str, dict[str, Floats]]:
        metrics = self.metrics("image")
        return {
            method: {name: self._column(method, name) for name in metrics}
            for method in self.pairs.methods
        }

    def _column(self, method: str, name: str) -> Floats:
        who = identity(name, self.found.digests[name], self.device)
        mine = self._marks[METHOD + method]
        others = self._marks.get(METRICS[name].against, [""] * len(mine))
        values = (
            self.known[one].values[value_name(who, other)]
            for one, other in zip(mine, others, strict=True)
        )
        return np.array([np.nan if value is None else value for value in values])

    @cached_property
    def _marks(self) -> dict[str, list[str]]:
        """Of the pictures of every role, in the order of the keys."""
        return {
            role: [mark(ref) for ref in refs.values()] for role, refs in self.pairs.roles.items()
        }

    def features(self, refs: Sequence[ImageRef], name: str) -> npt.NDArray[np.float32]:
        """Return the features [n, D] of pictures that a metric of sets compares.

        Raises:
            UserError: a file of features is damaged.
        """
        who = features_identity(name, self.found.digests[name], self.device)
        places = defaultdict[str, list[tuple[int, int]]](list)  # by file: place here, row there
        for place, ref in enumerate(refs):
            file, row = self.known[mark(ref)].features[who]
            places[file].append((place, row))
        files = [self.folder / name for name in places]
        parts = [
            _features(data, file)[[row for _, row in rows]]
            for file, rows, data in zip(files, places.values(), read_all(files), strict=True)
        ]
        found = np.concatenate(parts)
        features = np.empty_like(found)
        features[[place for rows in places.values() for place, _ in rows]] = found
        return features

    def parquet(self) -> bytes:
        """Encode a row for each picture of each method, with a column for each metric."""
        parts = []
        for method in self.pairs.methods:
            columns = {name: pa.array(values) for name, values in self.columns(method).items()}
            count = len(self.keys)
            parts.append(pa.table({"method": [method] * count, "key": self.keys, **columns}))
        return parquet_bytes(pa.concat_tables(parts))

    def pixels(self, refs: Iterable[ImageRef]) -> str:
        """Identify pictures by their keys, sizes and levels."""
        known = [(ref.key, self.known[mark(ref)]) for ref in refs]
        return digest([[key, *one.size, one.pixels] for key, one in known])

    def notes(self) -> Iterator[str]:
        """Yield a sentence for each kind of file that is no RGB PNG of 8 bits, by folder."""
        folders = [*self.pairs.roles.values()]
        others = self.pairs.distribution
        if others is not None and others is not self.pairs.hq and self.metrics("set"):
            folders.append(others)
        for refs in folders:
            option = next(iter(refs.values())).origin
            kinds = Counter(note for one in self.measured(refs.values()) for note in one.notes)
            for kind, count in sorted(kinds.items()):
                yield f"{option}: {count:,} of {len(refs):,} files are {kind}"


def _features(data: bytes, file: AnyPath) -> npt.NDArray[np.float32]:
    try:
        found: npt.NDArray[np.float32] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{file}: damaged ({error}); delete it and run the same command again, which measures "
            "its pictures anew"
        ) from error
    return found
