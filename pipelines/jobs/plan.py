"""A plan of shards on disk: a table, a row group a shard; and the record of each that is done."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import write_bytes


def record_path(shard: Path) -> Path:
    """Return where a staged shard's record lies."""
    return shard.with_name(f"{shard.name}.done.json")


def write_plan(path: Path, shards: list[pa.Table]) -> None:
    """Write the plan, one row group a shard; all tables have the first one's schema."""
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, shards[0].schema, compression="zstd") as writer:
        for table in shards:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    write_bytes(path, buffer.getvalue().to_pybytes())
