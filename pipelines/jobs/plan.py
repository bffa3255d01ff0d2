"""The plan of a set: a table with a row group for each shard, and the units of work left."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.shards import load_record
from infra.paths import AnyPath, opened, write_bytes

PLAN = "plan.parquet"


def record_path(shard: AnyPath) -> AnyPath:
    """Return the path of the record that says that a staged shard is finished."""
    return shard.with_name(f"{shard.name}.done.json")


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
    return [
        {"name": name, "row_group": number}
        for number, name in enumerate(names)
        if load_record(record_path(staging / name)) is None
    ]


def planned(plan: AnyPath, unit: dict[str, Any]) -> tuple[AnyPath, list[dict[str, Any]]]:
    """Return where a unit's shard is to be written, and the rows of the plan that it holds."""
    with opened(plan) as file:
        rows = pq.ParquetFile(file).read_row_group(unit["row_group"]).to_pylist()
    return plan.with_name(unit["name"]), rows
