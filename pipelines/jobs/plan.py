"""The plan of a set: a table with a row group for each shard, and the units of work left."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.shards import Shard, parsed_record
from infra.paths import AnyPath, opened, read_all, sizes, write_bytes

PLAN = "plan.parquet"
RECORDED = ".done.json"


def record_path(shard: AnyPath) -> AnyPath:
    """Return the path of the record that says that a staged shard is finished."""
    return shard.with_name(f"{shard.name}{RECORDED}")


def write_plan(path: AnyPath, shards: list[pa.Table]) -> None:
    """Write the plan, one row group for each shard; all tables have the schema of the first."""
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, shards[0].schema, compression="zstd") as writer:
        for table in shards:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    write_bytes(path, buffer.getvalue().to_pybytes())


def units_left(staging: AnyPath, names: Iterable[str]) -> list[dict[str, Any]]:
    """Return a unit of work for every shard of the plan that is not written yet.

    Args:
        staging: folder of the plan and of the shards.
        names: of the shards, in the order of the plan.
    """
    done = {shard.name for shard in finished(staging)}
    return [
        {"name": name, "row_group": number} for number, name in enumerate(names) if name not in done
    ]


def finished(staging: AnyPath) -> list[Shard]:
    """Read the records of the shards that are written, sorted by name; of a bucket several at once.

    A shard that is not there at its full length, as its record says, is none of them.
    """
    there = sizes(staging)
    records = [staging / name for name in sorted(there) if name.endswith(RECORDED)]
    shards = map(parsed_record, read_all(records))
    return [shard for shard in shards if there.get(shard.name) == shard.bytes]


class Plan:
    """A plan that a worker reads; the places of its row groups are read once.

    Args:
        path: of the plan, which may be written later.
    """

    def __init__(self, path: AnyPath) -> None:
        self._path = path
        self._metadata: pq.FileMetaData | None = None

    def of(self, unit: dict[str, Any]) -> tuple[AnyPath, list[dict[str, Any]]]:
        """Return where a unit's shard is to be written, and the rows of the plan that it holds."""
        with opened(self._path) as file:
            plan = pq.ParquetFile(file, metadata=self._metadata)
            self._metadata = plan.metadata
            rows = plan.read_row_group(unit["row_group"]).to_pylist()
        return self._path.with_name(unit["name"]), rows
