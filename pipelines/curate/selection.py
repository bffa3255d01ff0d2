"""Selection of scored candidates: which are kept, in which split and in which shard.

All of it is a function of the scores and the cut rule and needs no pixels, so a set is selected
again at another threshold in seconds.
"""

import hashlib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.sample import CANDIDATE, PLACEMENT, SCORES
from datasets.shards import shard_name
from pipelines.curate.config import CutRule
from pipelines.curate.duplicates import find_copies
from pipelines.curate.filters import Filter, drop_reason

DECIDED = pa.schema([("drop_reason", pa.string()), *PLACEMENT])


def uniform_of(source: str, seed: int) -> float:
    """Draw a number in [0, 1) from (seed, key) alone, whatever other images there are."""
    hashed = hashlib.sha256(f"{seed}/{source}".encode()).digest()
    return int.from_bytes(hashed[:8], "big") / 2**64


def group_splits(
    group: Mapping[str, str], rule: CutRule, listed: Collection[str]
) -> dict[str, str]:
    """Choose the split of every group of copies: `train`, `val`, or `held_out` of both.

    The group goes where its image of the smallest number goes, which is the one that is held out
    first. So an image that is in `val` alone takes its copies there, and new images can move a
    group into `val` and never out of it.

    Args:
        group: the group of each image.
        rule: seed and fractions.
        listed: images of `val`; with them the fractions do not count.

    Returns:
        The split by group.
    """
    if listed:
        held = {group[source] for source in listed if source in group}
        return {name: "val" if name in held else "train" for name in group.values()}
    smallest: dict[str, float] = {}
    for source, name in group.items():
        smallest[name] = min(smallest.get(name, 1.0), uniform_of(source, rule.seed))
    hold_out = rule.val_fraction if rule.hold_out is None else rule.hold_out
    return {
        name: "val" if value < rule.val_fraction else "held_out" if value < hold_out else "train"
        for name, value in smallest.items()
    }


def select(
    candidates: pa.Table,
    filters: tuple[Filter, ...],
    rule: CutRule,
    listed: Collection[str] = (),
    excluded: Mapping[str, str] = MappingProxyType({}),
) -> pa.Table:
    """Decide every candidate: its drop reason, or its split and shard.

    Args:
        candidates: rows of `CANDIDATE`, in any order.
        filters: applied in order; the first that returns a reason drops the candidate.
        rule: seed and share of the validation split, samples of a shard, what becomes of copies.
        listed: keys of the images of the validation split, instead of a share.
        excluded: the images that are copies of another set's, with the name of the other.

    Returns:
        Rows of `SCORES`, sorted by (source, index): the order of samples in the shards.
    """
    table = candidates.select(CANDIDATE.names).sort_by(
        [("source", "ascending"), ("index", "ascending")]
    )
    rows = table.select(["source", "quality", "drop_reason"]).to_pylist()
    copies = find_copies(table)
    _drop_images(rows, "excluded", excluded)
    for row in rows:
        row |= {"group": copies.group[row["source"]], "drop_reason": drop_reason(row, filters)}
    if rule.duplicates == "first":
        kept = {row["source"] for row in rows if row["drop_reason"] is None}
        _drop_images(rows, "duplicate", copies.dropped(kept))
    _place(rows, group_splits(copies.group, rule, listed), rule.samples_per_shard)
    decided = pa.Table.from_pylist(rows, schema=DECIDED)
    place = table.schema.get_field_index("drop_reason")
    table = table.set_column(place, "drop_reason", decided["drop_reason"])
    for name, _ in PLACEMENT:
        table = table.append_column(name, decided[name])
    return table.cast(SCORES)


def _drop_images(rows: list[dict[str, Any]], reason: str, matches: Mapping[str, str]) -> None:
    """Drop the candidates of some images, each with the name of what it is a copy of."""
    for row in rows:
        if row["drop_reason"] is None and row["source"] in matches:
            row |= {"drop_reason": reason, "match": matches[row["source"]]}


def _place(rows: list[dict[str, Any]], splits: Mapping[str, str], per_shard: int) -> None:
    """Give each candidate that is left the split of its group and the next place in a shard."""
    count = {"train": 0, "val": 0}
    for row in rows:
        split = splits[row["group"]]
        if row["drop_reason"] is not None:
            continue
        if split not in count:
            row["drop_reason"] = split
            continue
        row |= {"split": split, "shard": shard_name(split, count[split] // per_shard)}
        count[split] += 1


def shard_tables(scores: pa.Table) -> dict[str, pa.Table]:
    """Group the kept rows by shard, in order: first the shards of `train`, then those of `val`."""
    kept = scores.filter(pc.is_valid(scores["shard"]))
    names = kept["shard"].to_numpy(zero_copy_only=False)
    order = np.argsort(names, kind="stable")
    found, starts = np.unique(names[order], return_index=True)
    bounds = [*starts.tolist(), len(order)]
    return {
        name: kept.take(order[bounds[i] : bounds[i + 1]]) for i, name in enumerate(found.tolist())
    }


def count_reasons(scores: pa.Table) -> dict[str, int]:
    """Count the drop reasons, the most frequent first."""
    counts = pc.value_counts(scores["drop_reason"].drop_null()).to_pylist()
    pairs = [(entry["values"], entry["counts"]) for entry in counts]
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def count_copies(scores: pa.Table) -> int:
    """Count the images that are not the first of their group."""
    counts = [pc.count_distinct(scores[name]).as_py() for name in ("source", "group")]
    return int(counts[0] - counts[1])
