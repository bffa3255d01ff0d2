"""What is measured, by method and metric: columns over the keys, and features of whole sets."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.sources import ImageRef
from infra.config import digest
from infra.paths import AnyPath
from models.metrics.catalog import METRICS
from pipelines.evaluate.judges import Found, features_identity, identity
from pipelines.evaluate.measured import Measured, value_name
from pipelines.evaluate.pairs import METHOD, Pairs, mark

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
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
        who = identity(name, self.found.digests[name], self.device)
        values = []
        for key in self.keys:
            roles = self.pairs.of_key(key)
            other = roles.get(METRICS[name].against)
            known = self.known[mark(roles[METHOD + method])].values
            values.append(known[value_name(who, mark(other))])
        return np.array([np.nan if value is None else value for value in values])

    def columns(self, method: str) -> dict[str, Floats]:
        """Return the values of every metric of single pictures."""
        return {name: self.column(method, name) for name in self.metrics("image")}

    def features(self, refs: Sequence[ImageRef], name: str) -> npt.NDArray[np.float32]:
        """Return the features [n, D] of pictures that a metric of sets compares."""
        who = features_identity(name, self.found.digests[name], self.device)
        places = [self.known[mark(ref)].features[who] for ref in refs]
        files = {file: np.load(io.BytesIO((self.folder / file).read_bytes())) for file, _ in places}
        return np.stack([files[file][row] for file, row in places])

    def parquet(self) -> bytes:
        """Encode a row for each picture of each method, with a column for each metric."""
        parts = []
        for method in self.pairs.methods:
            columns = {name: pa.array(values) for name, values in self.columns(method).items()}
            count = len(self.keys)
            parts.append(pa.table({"method": [method] * count, "key": self.keys, **columns}))
        buffer = io.BytesIO()
        pq.write_table(pa.concat_tables(parts), buffer, compression="zstd")
        return buffer.getvalue()

    def pixels(self, refs: Iterable[ImageRef]) -> str:
        """Identify pictures by their keys, sizes and levels."""
        known = [(ref.key, self.known[mark(ref)]) for ref in refs]
        return digest([[key, *one.size, one.pixels] for key, one in known])

    def notes(self) -> Iterator[str]:
        """Yield a sentence for each kind of file that is no RGB PNG of 8 bits, by folder."""
        folders = {f"--restored {name}": refs for name, refs in self.pairs.methods.items()}
        folders |= {
            f"--{role.replace('_', '-')}": refs
            for role in ("hq", "posterior_mean", "distribution")
            if (refs := getattr(self.pairs, role)) is not None
        }
        for option, refs in folders.items():
            kinds = [note for one in self.measured(refs.values()) for note in one.notes]
            for kind in dict.fromkeys(kinds):
                yield f"{option}: {kinds.count(kind):,} of {len(refs):,} files are {kind}"
