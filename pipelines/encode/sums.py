"""Statistics of a latent set's channels, from sums that are kept for every latent.

`statistics.parquet` holds the sums of every latent, a row group for each shard: over its values
before they were stored, and over the variance of its posterior, neither of which is in the tars. A
set that copies latents copies their sums too and adds them in the order of its own shards, so that
its statistics are the same bits as if it had computed the latents. The table costs 32 C bytes for
each latent, 0.4 % of 32 channels in float16.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.latent_format import NPY_HEADER, LatentFormat
from infra.paths import AnyPath, opened, written_by_name

Channels = npt.NDArray[np.float64]
SUMS = ("total", "square", "variance", "rounding")


class ChannelSums:
    """Sums over latents, in float64, for each of C channels.

    Args:
        channels: C.

    Attributes:
        count: number of values in a channel so far.
        total: sum of the values.
        square: sum of their squares.
        variance: sum of the posterior's variances, one for each value.
        rounding: sum of the squared errors of storing.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.total, self.square, self.variance, self.rounding = np.zeros((4, channels))

    def add(self, part: Mapping[str, Any]) -> None:
        """Add sums that `latent_sums` or `to_json` returned."""
        self.count += part["count"]
        for name in SUMS:
            getattr(self, name).__iadd__(np.asarray(part[name]))

    def to_json(self) -> dict[str, Any]:
        """Return the sums as JSON values, without rounding."""
        return {"count": self.count, **{name: getattr(self, name).tolist() for name in SUMS}}

    @classmethod
    def joined(cls, parts: Sequence[Mapping[str, Any]], channels: int) -> "ChannelSums":
        """Add up results of `to_json` in the order given, on which the last bits depend."""
        sums = cls(channels)
        for part in parts:
            sums.add(part)
        return sums

    @property
    def mean(self) -> Channels:
        """Mean of each channel."""
        return self.total / max(1, self.count)

    @property
    def std(self) -> Channels:
        """Standard deviation of each channel."""
        spread: Channels = self.square / max(1, self.count) - np.square(self.mean)
        return np.sqrt(np.maximum(spread, 0))

    @property
    def sigma(self) -> Channels:
        """Root mean square of the posterior's standard deviation in each channel."""
        return np.sqrt(self.variance / max(1, self.count))

    @property
    def rounding_error(self) -> Channels:
        """Root mean square of the error of storing in each channel."""
        return np.sqrt(self.rounding / max(1, self.count))

    def summary(self) -> dict[str, list[float]]:
        """Return the statistics that the manifest has of these latents."""
        names = ("mean", "std", "sigma", "rounding_error")
        return {name: getattr(self, name).tolist() for name in names}


def latent_sums(
    latent: npt.NDArray[np.float32], variance: Channels, stored: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """Return the sums of one latent, for `ChannelSums.add`.

    Args:
        latent: [C, h, w].
        variance: variance of the posterior, averaged over each channel.
        stored: the latent after it was stored and read again.
    """
    values = latent.astype(np.float64)
    cells = values[0].size
    return {
        "count": cells,
        "total": values.sum((1, 2)),
        "square": np.square(values).sum((1, 2)),
        "variance": variance * cells,
        "rounding": np.square(values - stored).sum((1, 2)),
    }


def latent_values(content: bytes, latent: LatentFormat) -> npt.NDArray[np.float32]:
    """Read the `.npy` member of a latent set as a loader does: float32 [C, h, w]."""
    stored = np.frombuffer(content, latent.dtype, offset=NPY_HEADER).reshape(latent.shape)
    values = stored.astype(np.float32)
    if latent.scale is None or latent.offset is None:
        return values
    scale, offset = (np.array(v, np.float32)[:, None, None] for v in (latent.scale, latent.offset))
    return values * scale + offset


STATISTICS = "statistics.parquet"
ROW = pa.schema(
    [
        ("shard", pa.string()),
        ("key", pa.string()),
        ("extension", pa.string()),
        *((name, pa.list_(pa.float64())) for name in SUMS),
    ]
)
"""The sums of one latent. Gray targets have no row; the statistics leave them out."""
Latents = Mapping[tuple[str, str], Mapping[str, Any]]
"""Results of `latent_sums` by key and extension."""


def shard_table(shard: str, latents: Latents) -> pa.Table:
    """Tabulate the sums of one shard's latents, in the order given."""
    columns: list[Any] = [
        [shard] * len(latents),
        [key for key, _ in latents],
        [extension for _, extension in latents],
        *([np.asarray(part[name]) for part in latents.values()] for name in SUMS),
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, ROW, strict=True)]
    return pa.table(arrays, schema=ROW)


def write_tables(path: AnyPath, tables: Iterable[pa.Table]) -> None:
    """Write a set's table atomically, one shard in memory at a time."""
    with written_by_name(path) as temporary, pq.ParquetWriter(temporary, ROW) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(1, table.num_rows))


def read_tables(path: AnyPath) -> Iterator[pa.Table]:
    """Yield the tables that `write_tables` wrote; none if there is no such file."""
    try:
        file = opened(path)
    except FileNotFoundError:
        return
    with file, pq.ParquetFile(file, pre_buffer=True) as table:
        for number in range(table.num_row_groups):
            yield table.read_row_group(number)


class LatentTable:
    """The table of a set, read by shard.

    Args:
        path: path of the table.
        cells: number of values in a channel of a latent, h x w.
    """

    def __init__(self, path: AnyPath, cells: int) -> None:
        self.cells = cells
        self._path = path
        with opened(path) as file:
            self._metadata = pq.read_metadata(file)
        groups = (self._metadata.row_group(i) for i in range(self._metadata.num_row_groups))
        self._number = {group.column(0).statistics.min: i for i, group in enumerate(groups)}

    def sums(self, shards: Sequence[str]) -> Latents:
        """Return the sums of all latents of these shards; the table may lack some shards."""
        numbers = [self._number[shard] for shard in shards if shard in self._number]
        with opened(self._path) as file:
            table = pq.ParquetFile(file, metadata=self._metadata, pre_buffer=True)
            rows = table.read_row_groups(numbers).to_pylist() if numbers else []
        found = {}
        for row in rows:
            part = {name: np.array(row[name]) for name in SUMS}
            found[row["key"], row["extension"]] = {"count": self.cells, **part}
        return found


def problems(folder: AnyPath, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each side whose statistics are not those of the table.

    The table of a set that grew from one without a table is incomplete and is not compared.
    """
    latent = manifest["latent"]
    cells, channels = latent["height"] * latent["width"], latent["channels"]
    sides = {side: ChannelSums(channels) for side in ("target", "source")}
    rows = 0
    for table in read_tables(folder / STATISTICS):
        for row in table.to_pylist():
            sides[row["extension"].partition("_")[0]].add({"count": cells, **row})
        rows += table.num_rows
    if rows != 2 * manifest["totals"]["samples"] + manifest["totals"]["pairs"]:
        return
    for side, sums in sides.items():
        said = manifest["statistics"][side]
        for name, values in sums.summary().items():
            if not np.allclose(values, said[name], rtol=1e-6, atol=1e-9):
                yield f"{STATISTICS}: its latents add up to another {name} of the {side} latents"
