"""The pair table of a latent set: the places of source and target of every pair.

It is made from the tars alone, so it can be made again.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import Any

import pyarrow as pa

from datasets.latent_format import LatentFormat, source_extension, target_extension
from datasets.reading.files import shard_files
from datasets.reading.ranges import Place, Ranges, read_members, readable
from datasets.sets import PublishedSet
from datasets.shards import INDEX, Shard
from infra.config import from_dict
from infra.errors import UserError
from infra.paths import AnyPath, sizes

PAIRS = "pairs.parquet"
PAIR = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("draw", pa.int32()),
        ("flip", pa.bool_()),
        ("gray", pa.bool_()),  # the target is the draw's own
        ("source_shard", pa.string()),
        ("source_offset", pa.int64()),  # of the member's content, its .npy header
        ("source_size", pa.int64()),
        ("source_crc32", pa.uint32()),  # of the member; null in shards of an earlier version
        ("target_shard", pa.string()),
        ("target_offset", pa.int64()),
        ("target_size", pa.int64()),
        ("target_crc32", pa.uint32()),  # of the member; null in shards of an earlier version
    ]
)
"""One row of `pairs.parquet`: sorted by split, key and draw."""


def pair_table(
    folder: AnyPath, shards: Sequence[Shard], staging: AnyPath | None = None
) -> pa.Table:
    """Tabulate the pairs of all shards of a set, old and new; columns as in `PAIR`.

    Args:
        folder: where the shards are, to read the flips in their JSON members.
        shards: all of them.
        staging: where those of them are that are not published yet.

    Raises:
        UserError: a draw without its target, or one draw twice.
    """
    lengths = {shard.name: shard.bytes for shard in shards}
    staged = {} if staging is None else sizes(staging)
    published, new = (shard_files(place or folder, lengths) for place in (folder, staging))
    places: dict[tuple[str, str, str], tuple[str, int, int, int | None]] = {}
    labels: dict[bool, list[tuple[str, str, Place]]] = {False: [], True: []}
    for shard in shards:
        split = shard.entry()["split"]
        for member in shard.members:
            place = (shard.name, member.offset, member.size, member.crc32)
            if member.extension == "json":
                label = Place(shard.name, f"{member.key}.json", *place[1:])
                labels[shard.name in staged].append((split, member.key, label))
            elif places.setdefault((split, member.key, member.extension), place) != place:
                raise UserError(f"{shard.name}: {member.key}.{member.extension} occurs twice")
    rows = []
    for split, key, draws in chain(_drawn(published, labels[False]), _drawn(new, labels[True])):
        for number, draw in draws.items():
            target = target_extension(int(number), draw["flip"], draw["gray_target"])
            try:
                source = places[split, key, source_extension(int(number))]
                pair = (*source, *places[split, key, target])
            except KeyError as missing:
                raise UserError(f"{key}: draw {number} lacks {missing} in {folder}") from missing
            rows.append((key, split, int(number), draw["flip"], draw["gray_target"], *pair))
    rows.sort(key=lambda row: (row[1], row[0], row[2]))
    columns = list(zip(*rows, strict=True)) or [()] * len(PAIR.names)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, PAIR, strict=True)], schema=PAIR)


def _drawn(
    files: Ranges, labels: Sequence[tuple[str, str, Place]]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield split, key and draws of the samples whose JSON members these are."""
    contents = read_members(files, (place for _, _, place in labels))
    for (split, key, _), content in zip(labels, contents, strict=True):
        yield split, key, json.loads(readable(content))["draws"]


def problems(claimed: PublishedSet) -> Iterator[str]:
    """Yield one sentence for everything in a latent set's pair table that cannot be right.

    The table is compared with the index; that this is right, and each latent what the format says,
    is checked by who reads the shards.

    Raises:
        UserError: the table, or the index, is missing or another one.
    """
    manifest = claimed.manifest
    latent = from_dict(LatentFormat, manifest["latent"])
    members = {(row["shard"], row["offset"]): row for row in claimed.table(INDEX).to_pylist()}
    rows = claimed.table(PAIRS).to_pylist()
    for _, same in groupby(rows, key=lambda row: (row["split"], row["key"], row["draw"])):
        first, *others = same
        if others:
            yield f"{first['key']}: draw {first['draw']} occurs {1 + len(others)} times"
    for row in rows:
        extensions = {
            "source": source_extension(row["draw"]),
            "target": target_extension(row["draw"], row["flip"], row["gray"]),
        }
        for side, extension in extensions.items():
            name = f"{row['key']}.{extension}"
            shard, offset, size = (row[f"{side}_{what}"] for what in ("shard", "offset", "size"))
            member = members.get((shard, offset))
            if size != latent.member_bytes:
                yield f"{name}: {size} bytes, the format has {latent.member_bytes}"
            elif member is None or f"{member['key']}.{member['extension']}" != name:
                yield f"{name}: {INDEX} has something else at byte {offset} of {shard}"
            elif row.get(f"{side}_crc32") != member.get("crc32"):
                yield f"{name}: {PAIRS} and {INDEX} have different checksums of it"
