"""Selection of scored candidates: which are kept, in which split and in which shard.

All of it is a function of the scores and the cut rule and needs no pixels, so a set is selected
again at another threshold in seconds.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.sample import CANDIDATE, SCORES
from datasets.shards import shard_name
from pipelines.curate.config import CutRule
from pipelines.curate.filters import Filter, drop_reason


def split_of(source: str, rule: CutRule) -> str:
    """Choose the split of a source image from (seed, key) alone.

    All patches of an image share its split, and it stays the same whatever the threshold and
    whatever other images there are: a validation image never becomes a training image.
    """
    hashed = hashlib.sha256(f"{rule.seed}/{source}".encode()).digest()
    uniform = int.from_bytes(hashed[:8], "big") / 2**64
    return "val" if uniform < rule.val_fraction else "train"


def select(candidates: pa.Table, filters: tuple[Filter, ...], rule: CutRule) -> pa.Table:
    """Decide every candidate: its drop reason, or its split and shard.

    Args:
        candidates: rows of `CANDIDATE`, in any order.
        filters: applied in order; the first that returns a reason drops the candidate.
        rule: seed and share of the validation split, and samples of a shard.

    Returns:
        Rows of `SCORES`, sorted by (source, index): the order of samples in the shards.
    """
    table = candidates.select(CANDIDATE.names).sort_by(
        [("source", "ascending"), ("index", "ascending")]
    )
    columns = table.select(["source", "quality", "drop_reason"]).to_pylist()
    reasons = [drop_reason(row, filters) for row in columns]
    splits: list[str | None] = []
    shards: list[str | None] = []
    count = {"train": 0, "val": 0}
    cached: dict[str, str] = {}
    for row, reason in zip(columns, reasons, strict=True):
        if reason is not None:
            splits.append(None)
            shards.append(None)
            continue
        source = row["source"]
        split = cached.setdefault(source, "") or split_of(source, rule)
        cached[source] = split
        splits.append(split)
        shards.append(shard_name(split, count[split] // rule.samples_per_shard))
        count[split] += 1
    place = table.schema.get_field_index("drop_reason")
    table = table.set_column(place, "drop_reason", pa.array(reasons, pa.string()))
    table = table.append_column("split", pa.array(splits, pa.string()))
    return table.append_column("shard", pa.array(shards, pa.string())).cast(SCORES)


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
