"""The manifest and the tables of a latent set, written anew with each generation of draws."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import chain
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from datasets import shards
from datasets.latent_format import LatentFormat
from datasets.latent_pairs import PAIRS, pair_table
from datasets.sets import FORMATS, PublishedSet, open_set
from datasets.shards import Member, Shard
from infra import paths
from infra.ahead import map_ahead
from infra.config import canonical_json, pretty_json, to_dict
from infra.paths import AnyPath
from pipelines.encode.members import GenerationSpec, statistics_path, table_path
from pipelines.encode.sums import STATISTICS, ChannelSums, read_tables, write_tables
from pipelines.jobs.plan import record_path

LIBRARIES = ("torch", "numpy", "opencv-python-headless", "pillow", "pyarrow")
SIDES = ("target", "source")
READS = 8  # small files that are read at a time: from a bucket it is the way that takes long
T = TypeVar("T")
REPEATED = ("format", "identity", "distortion", "latent", "draws", "generations")
"""Entries of the manifest that the metadata of `pairs.parquet` repeat, for `verify` to compare."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Draws that were encoded together, in a staging folder."""

    staging: AnyPath
    """Folder of the shards, their records and their sums."""
    names: tuple[str, ...]
    """Names of the shards."""
    spec: GenerationSpec
    """The settings that the shards share."""
    latent: LatentFormat
    """How a latent is stored."""

    def shards(self) -> list[Shard]:
        """Return the finished shards, in order."""
        found = self._of_each(lambda name: shards.load_record(record_path(self.staging / name)))
        return [shard for shard in found if shard is not None]

    def entry(self) -> dict[str, Any]:
        """Return the generation's entry in the manifest."""
        sums = list(
            self._of_each(
                lambda name: json.loads(statistics_path(self.staging / name).read_bytes())
            )
        )
        channels = self.latent.channels
        reused = [part["reused"] for part in sums if "reused" in part]
        return {
            "draws": [self.spec.first, self.spec.last],
            "shards": list(self.names),
            "devices": sorted({part["device"] for part in sums}),
            "batches": sorted({part["batch"] for part in sums}),
            "versions": {
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in LIBRARIES},
            },
            "sums": {
                side: ChannelSums.joined([part[side] for part in sums], channels).to_json()
                for side in SIDES
            },
            **({"reused": _reused(reused)} if reused else {}),
        }

    def tables(self) -> Iterator[pa.Table]:
        """Yield the sums of every latent, shard by shard."""
        found = self._of_each(lambda name: list(read_tables(table_path(self.staging / name))))
        return chain.from_iterable(found)

    def _of_each(self, read: Callable[[str], T]) -> Iterator[T]:
        """Yield what ``read`` makes of the name of every shard, in order, several at a time."""
        return map_ahead(read, self.names, threads=READS)


def _reused(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count the latents that the shards copied, and list the digests of the sets they came from."""
    return {
        **{side: sum(part[side] for part in parts) for side in ("targets", "sources")},
        "manifests": sorted({part["manifest"] for part in parts}),
    }


def stage_manifest(
    folder: AnyPath,
    before: Mapping[str, Any] | None,
    new: Generation,
    entries: Mapping[str, Any],
) -> None:
    """Write the tables and, last, the manifest of a set with one more generation.

    Args:
        folder: folder of the set, with the shards of earlier generations.
        before: its manifest; None if there is no set yet.
        new: the generation that is added.
        entries: further entries of the manifest.
    """
    published = None if before is None else open_set(folder, "latent set")
    written = [*(_published(published) if published else ()), *new.shards()]
    pairs = pair_table(folder, written, new.staging)
    index = shards.parquet_bytes(shards.index_table(written))
    paths.write_bytes(new.staging / shards.INDEX, index)
    old = _statistics(published) if published else ()
    write_tables(new.staging / STATISTICS, chain(old, new.tables()))
    generations = [*(before["generations"] if before else []), new.entry()]
    statistics = joined_statistics(generations, new.latent.channels)
    target = statistics["target"]
    latent = replace(new.latent, mean=tuple(target["mean"]), std=tuple(target["std"]))
    claims = {
        "format": FORMATS["latent set"][-1],
        **entries,
        "latent": to_dict(latent),
        "draws": new.spec.last,
        "generations": generations,
    }
    paths.write_bytes(new.staging / PAIRS, pairs_bytes(pairs, claims))
    manifest = {
        **{name: value for name, value in claims.items() if name != "generations"},
        "statistics": statistics,
        "totals": {
            "samples": pc.count_distinct(pairs["key"]).as_py(),
            "pairs": len(pairs),
            "gray": pc.sum(pairs["gray"]).as_py(),
            "shards": len(written),
            "bytes": sum(shard.bytes for shard in written),
        },
        "shards": [shard.entry() for shard in written],
        "files": {
            name: shards.file_entry(new.staging / name)
            for name in (shards.INDEX, PAIRS, STATISTICS)
        },
        "generations": generations,
    }
    paths.write_bytes(new.staging / shards.MANIFEST, pretty_json(manifest))


def pairs_bytes(pairs: pa.Table, manifest: Mapping[str, Any]) -> bytes:
    """Return `pairs.parquet` as it lies beside a manifest, or beside its `REPEATED` entries."""
    metadata = {"manifest": canonical_json(repeated(manifest))}
    return shards.parquet_bytes(pairs.replace_schema_metadata(metadata))


def repeated(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest's `REPEATED` entries, without what was copied: tables do not tell that."""
    entries = {name: manifest[name] for name in REPEATED}
    entries["generations"] = [
        {name: value for name, value in generation.items() if name != "reused"}
        for generation in manifest["generations"]
    ]
    return entries


def joined_statistics(
    generations: Sequence[Mapping[str, Any]], channels: int
) -> dict[str, dict[str, list[float]]]:
    """Return a set's statistics of both sides from the sums of its generations."""
    return {
        side: ChannelSums.joined([part["sums"][side] for part in generations], channels).summary()
        for side in SIDES
    }


def _published(opened: PublishedSet) -> Iterator[Shard]:
    """Yield the shards of a published set with their members, from its index."""
    members: dict[str, list[Member]] = {}
    for row in opened.index().to_pylist():
        members.setdefault(row.pop("shard"), []).append(Member(**row))
    for entry in opened.manifest["shards"]:
        name = entry["name"]
        yield Shard(name, entry["samples"], entry["bytes"], entry["sha256"], tuple(members[name]))


def _statistics(opened: PublishedSet) -> Iterator[pa.Table]:
    """Yield the table of sums of a published set, shard by shard; sets of long ago have none."""
    if STATISTICS in opened.manifest["files"]:
        opened.check(STATISTICS)
        yield from read_tables(opened.folder / STATISTICS)
