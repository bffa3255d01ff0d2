"""Mending of a latent set: exactly the damaged files are made again, from the image set.

A shard is encoded as it was: the same images in the same batches. On the machine that made it, or
one of its kind, it comes out as the same bytes; where it does not, nothing is replaced. The table
of statistics keeps what is not in the shards, so that for it alone all of them are encoded again.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from datasets import shards
from datasets.latent_pairs import PAIRS, pair_table
from datasets.sets import claimed_set
from datasets.verify import damaged
from infra import paths
from infra.config import differences, flat
from infra.errors import UserError
from infra.paths import AnyPath
from pipelines.encode.images import latent_shards
from pipelines.encode.job import Encoding
from pipelines.encode.manifest import pairs_bytes
from pipelines.encode.members import GenerationSpec, table_path
from pipelines.encode.sums import STATISTICS, read_tables, write_tables
from pipelines.encode.worker import EncodeShard
from pipelines.jobs.plan import PLAN, units_left, write_plan
from pipelines.jobs.stage import Engine, started


def repair(job: Encoding, engine: Engine | None = None) -> list[str]:
    """Make again the files of a job's published set that are damaged.

    Args:
        job: that made the set.
        engine: what carries out the units; by default Ray.

    Returns:
        The names of the files.

    Raises:
        UserError: they would not come out as they were; those are not replaced.
    """
    with job.set.held():
        restored = job.set.restore_manifest()
        manifest = claimed_set(job.folder, "latent set").manifest
        if changed := differences(flat(job.identity), flat(manifest["identity"])):
            raise UserError(
                f"{job.folder}: images, networks or settings are not those that it was made with "
                f"({'; '.join(changed)}); bring those back, or encode anew with --overwrite"
            )
        names = damaged(job.folder, manifest)
        staging = job.state / "mending"
        paths.remove_tree(staging)
        every = [entry["name"] for entry in manifest["shards"]]
        lost = every if STATISTICS in names else [name for name in every if name in names]
        if lost:
            with started(engine, job.config.workers) as running:
                _encode(job, manifest, lost, staging, running)
        for name in every:
            if name in names:
                _replace(job, staging, name, manifest)
        _tables(job, manifest, names, staging)
        paths.remove_tree(staging)
        return [*restored, *names]


def _encode(
    job: Encoding,
    manifest: Mapping[str, Any],
    names: Sequence[str],
    staging: AnyPath,
    engine: Engine,
) -> None:
    """Encode some shards of a set into a folder, each as in the generation that it belongs to."""
    taken: dict[str, int] = {}
    for generation in manifest["generations"]:
        tables = latent_shards(job.images.rows, job.config.samples_per_shard, taken)
        for name in tables:
            split = name.rpartition("-")[0]
            taken[split] = taken.get(split, 0) + 1
        wanted = {name: rows for name, rows in tables.items() if name in names}
        if wanted:
            first, last = generation["draws"]
            _encode_draws(job, manifest, wanted, range(first, last), staging, engine)


def _encode_draws(
    job: Encoding,
    manifest: Mapping[str, Any],
    tables: Mapping[str, pa.Table],
    draws: range,
    staging: AnyPath,
    engine: Engine,
) -> None:
    write_plan(staging / PLAN, list(tables.values()))
    spec = GenerationSpec(
        plan=str(staging / PLAN),
        images=str(job.images.folder),
        size=job.images.size,
        first=draws.start,
        last=draws.stop,
        latent=manifest["latent"],
        networks=job.networks,
        keep_images=job.config.keep_images,
    )
    units = units_left(staging, tables)
    total = sum(table.num_rows for table in tables.values())
    resources = job.resources(engine)
    for _ in engine.run("encode", units, EncodeShard, (spec, job.rule), total, resources):
        pass


def _tables(
    job: Encoding, manifest: Mapping[str, Any], names: Sequence[str], staging: AnyPath
) -> None:
    """Make damaged tables again from the shards, which are whole now, or from what was encoded."""
    every = [entry["name"] for entry in manifest["shards"]]
    if STATISTICS in names:
        parts = (read_tables(table_path(staging / name)) for name in every)
        write_tables(staging / STATISTICS, chain.from_iterable(parts))
        _replace(job, staging, STATISTICS, manifest)
    if PAIRS in names or shards.INDEX in names:
        whole = [shards.scan(job.folder / name) for name in every]
        contents = {
            shards.INDEX: lambda: shards.parquet_bytes(shards.index_table(whole)),
            PAIRS: lambda: pairs_bytes(pair_table(job.folder, whole), manifest),
        }
        for name in contents.keys() & names:
            paths.write_bytes(staging / name, contents[name]())
            _replace(job, staging, name, manifest)


def _replace(job: Encoding, staging: AnyPath, name: str, manifest: Mapping[str, Any]) -> None:
    if not job.set.replace_equal(staging, name, manifest):
        made = [(g["devices"], g["batches"], g["versions"]) for g in manifest["generations"]]
        raise UserError(
            f"{job.folder / name}: encoded again it is another file than the manifest says; the "
            f"set was made with (devices, batches, versions) {made}: repeat it there, or encode "
            "anew with --overwrite"
        )
