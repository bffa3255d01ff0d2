"""From scores to a plan: who is kept, in which split, in which shard."""

from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.sample import CANDIDATE, empty_row
from pipelines.curate.config import CutRule
from pipelines.curate.filters import already_dropped, drop_reason, quality_worse_than, unscorable
from pipelines.curate.selection import count_reasons, select, shard_tables, uniform_of

AT_LEAST_3_5 = (already_dropped, unscorable, quality_worse_than(3.5, higher_is_better=True))
AT_MOST_40 = (already_dropped, unscorable, quality_worse_than(40.0, higher_is_better=False))


def candidates(qualities: dict[str, list[float | None]]) -> pa.Table:
    """Make rows: {image: the qualities of its patches}."""
    rows = [
        empty_row(key=f"{image}_s{i:03d}", source=image, origin="test", index=i, quality=quality)
        for image, values in qualities.items()
        for i, quality in enumerate(values, start=1)
    ]
    return pa.Table.from_pylist(rows, schema=CANDIDATE)


@pytest.mark.parametrize(
    ("row", "filters", "reason"),
    [
        ({"quality": 3.5, "drop_reason": None}, AT_LEAST_3_5, None),
        ({"quality": 3.499, "drop_reason": None}, AT_LEAST_3_5, "low_quality"),
        ({"quality": 40.0, "drop_reason": None}, AT_MOST_40, None),
        ({"quality": 40.001, "drop_reason": None}, AT_MOST_40, "low_quality"),
        ({"quality": None, "drop_reason": None}, AT_MOST_40, "unscorable"),
        ({"quality": float("nan"), "drop_reason": None}, AT_LEAST_3_5, "unscorable"),
        ({"quality": None, "drop_reason": "truncated"}, AT_LEAST_3_5, "truncated"),
        ({"quality": 1.0, "drop_reason": None}, (already_dropped,), None),
    ],
)
def test_the_first_reason_wins(
    row: dict[str, Any], filters: tuple[Any, ...], reason: str | None
) -> None:
    """A candidate is kept, or dropped with the reason expected of it."""
    assert reason == drop_reason(row, filters)


def test_order_is_by_image_then_by_number_not_by_name() -> None:
    """Patch 1000 follows patch 999 although its name sorts before _s101."""
    table = select(candidates({"b": [5.0], "a": [5.0] * 1001}), AT_LEAST_3_5, CutRule())

    keys = table["key"].to_pylist()
    assert keys[:2] == ["a_s001", "a_s002"]
    assert keys[999:] == ["a_s1000", "a_s1001", "b_s001"]


images = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.lists(st.one_of(st.none(), st.floats(1, 5)), min_size=1, max_size=6),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60)
@given(images, st.floats(0, 0.9), st.integers(1, 5), st.integers(0, 3), st.randoms())
def test_a_plan_is_a_partition(
    qualities: dict[str, list[float | None]],
    fraction: float,
    per_shard: int,
    seed: int,
    random: Any,
) -> None:
    """Every kept candidate is in one shard; shards are full and dense; no image is in two splits.

    And the order in which the candidates came changes nothing.
    """
    rule = CutRule(samples_per_shard=per_shard, val_fraction=fraction, seed=seed)
    table = candidates(qualities)
    plan = select(table, AT_LEAST_3_5, rule)
    order = list(range(table.num_rows))
    random.shuffle(order)

    assert select(table.take(order), AT_LEAST_3_5, rule).equals(plan)

    rows = plan.to_pylist()
    kept = [row for row in rows if row["drop_reason"] is None]
    assert all((row["shard"] is None) == (row["drop_reason"] is not None) for row in rows)
    splits = {(row["source"], row["split"]) for row in kept}
    assert len(splits) == len({source for source, _ in splits})
    tables = shard_tables(plan)
    assert [row["key"] for t in tables.values() for row in t.to_pylist()] == [
        row["key"] for split in ("train", "val") for row in kept if row["split"] == split
    ]
    for a, b in pairwise(tables):
        same = a.rpartition("-")[0] == b.rpartition("-")[0]
        assert not same or tables[a].num_rows == per_shard
    for split in ("train", "val"):
        names = [name for name in tables if name.startswith(split)]
        assert names == [f"{split}-{number:06d}.tar" for number in range(len(names))]


def test_the_split_of_an_image_survives_other_thresholds_and_other_images() -> None:
    """It is a function of (seed, key): cutting again never moves a photograph into training."""
    rule = CutRule(val_fraction=0.3, seed=5)
    few = {f"img{i}": [3.6, 4.9] for i in range(40)}
    many = few | {f"other{i}": [4.0] for i in range(40)}

    def splits(plan: pa.Table) -> dict[str, str]:
        kept = plan.filter(pc.is_valid(plan["split"]))
        return dict(zip(kept["source"].to_pylist(), kept["split"].to_pylist(), strict=True))

    first = splits(select(candidates(few), AT_LEAST_3_5, rule))
    stricter = (already_dropped, quality_worse_than(4.5, higher_is_better=True))
    second = splits(select(candidates(many), stricter, rule))

    assert {key: second[key] for key in first} == first
    assert 0 < sum(split == "val" for split in first.values()) < 40


def test_the_share_of_the_validation_split_is_the_one_asked_for() -> None:
    """Over many images the hash is uniform."""
    share = sum(uniform_of(f"image{i}", 0) < 0.1 for i in range(20_000)) / 20_000

    assert share == pytest.approx(0.1, abs=0.01)


def test_reasons_are_counted_most_frequent_first() -> None:
    """The report's first line is what costs most."""
    table = select(candidates({"a": [1.0, 2.0, None], "b": [4.0]}), AT_LEAST_3_5, CutRule())

    assert list(count_reasons(table).items()) == [("low_quality", 2), ("unscorable", 1)]


@pytest.mark.parametrize(
    "fields", [{"samples_per_shard": 0}, {"val_fraction": 1.0}, {"val_fraction": -0.1}]
)
def test_a_rule_that_cannot_be_is_refused(fields: dict[str, float]) -> None:
    """The message names the field."""
    with pytest.raises(ValueError, match=next(iter(fields))):
        CutRule(**fields)  # type: ignore[arg-type]
