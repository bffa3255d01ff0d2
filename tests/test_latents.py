"""Latent sets: what the writer wrote is what webdataset, the pair table and the loader give."""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.latent_format import LatentFormat
from datasets.latent_pairs import PAIR, PAIRS, pair_table, problems
from datasets.reading.latents import LatentBatch, LatentPairs, check_belongs
from datasets.reading.memory import Memory
from datasets.reading.order import Picks
from datasets.sets import open_set
from datasets.shards import (
    BLOCK,
    file_entry,
    load_record,
    parquet_bytes,
    read_manifest,
    save_record,
)
from datasets.verify import damaged
from infra.errors import UserError
from infra.storage import write_bytes
from tests.support.published_sets import (
    SMALL,
    latent,
    publish_latents,
    restate,
    sample,
    write_latent_shard,
    write_latents,
)

KEYS = [f"face/{number:03d}" for number in range(12)]


def draw(indices: Sequence[int], visit: int = 0, seed: int = 0) -> Picks:
    """Ask for samples by number."""
    index = np.array(indices)
    return Picks(np.zeros_like(index), index, np.full_like(index, visit), seed)


def load(pairs: LatentPairs, indices: Sequence[int], visit: int = 0) -> LatentBatch:
    """Load samples by number."""
    return pairs.load(draw(indices, visit), Memory("reused"))


def counting(pairs: LatentPairs, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the bytes of every system call that reads a shard."""
    sizes: list[int] = []
    preadv = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        sizes.append(preadv(descriptor, buffers, offset))
        return sizes[-1]

    monkeypatch.setattr(os, "preadv", counted)
    return sizes


@settings(max_examples=25)
@given(
    draws=st.lists(st.integers(0, 30), min_size=1, max_size=5, unique=True),
    flips=st.integers(0, 2**31),
    gray=st.integers(0, 2**31),
    channels=st.integers(1, 3),
    side=st.integers(1, 7),
)
def test_every_draw_gets_its_source_and_the_target_of_its_flip(
    tmp_path_factory: pytest.TempPathFactory,
    draws: list[int],
    flips: int,
    gray: int,
    channels: int,
    side: int,
) -> None:
    """Whatever the draws, flips, gray targets and shapes: the pair is the one that was written."""
    form = LatentFormat(channels=channels, height=side, width=side + 1, dtype="float32")
    grays = [k for k in draws if gray >> k & 1]
    samples = [
        sample(form, key, draws, flip=lambda k: bool(flips >> k & 1), gray=grays)
        for key in ("a", "b")
    ]
    folder = write_latents(tmp_path_factory.mktemp("set"), samples, form, per_shard=1)
    pairs = LatentPairs(folder)

    seen = set()
    for visit in range(len(draws)):
        batch = load(pairs, [0, 1], visit)
        for row, (key, k, flip) in enumerate(
            zip(batch.keys, batch.draws, batch.flips, strict=True)
        ):
            target = ("gray", k) if k in grays else ("target", int(flip))
            assert flip == bool(flips >> k & 1)
            assert (batch.source[row].numpy() == latent(form, key, "source", k)).all()
            assert (batch.target[row].numpy() == latent(form, key, *target)).all()
            seen.add((key, k))
    assert seen == {(key, k) for key in ("a", "b") for k in draws}
    assert list(problems(open_set(folder, "latent set"))) == []


def test_plain_webdataset_gives_the_same_samples(tmp_path: Path) -> None:
    """The public library, with its own decoder, reads the tars and finds what the loader gives."""
    samples = [sample(SMALL, key, [0, 1], gray=[1] if key == KEYS[3] else []) for key in KEYS]
    folder = write_latents(tmp_path / "set", samples)
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    theirs = {s["__key__"]: s for s in wds.WebDataset(tars, shardshuffle=False).decode()}
    pairs = LatentPairs(folder)

    assert list(theirs) == KEYS
    for visit in (0, 1):
        batch = load(pairs, range(len(KEYS)), visit)
        for row, (key, k) in enumerate(zip(batch.keys, batch.draws, strict=True)):
            described = theirs[key]["json"]["draws"][str(k)]
            name = f"target_g{k}.npy" if described["gray_target"] else f"target_{k}.npy"
            assert described["flip"] == batch.flips[row] == (k == 1)
            assert (theirs[key][f"source_{k}.npy"] == batch.source[row].numpy()).all()
            assert (theirs[key][name] == batch.target[row].numpy()).all()


@pytest.mark.parametrize(("draws", "flipped"), [([0], False), ([0], True), ([0, 1], None)])
def test_a_pair_costs_one_read_and_no_byte_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draws: list[int], flipped: bool | None
) -> None:
    """With one draw, or one of each flip: one system call of both latents and their headers."""
    samples = [
        sample(SMALL, key, draws, flip=lambda k: k == 1 if flipped is None else flipped)
        for key in KEYS
    ]
    pairs = LatentPairs(write_latents(tmp_path, samples))
    sizes = counting(pairs, monkeypatch)
    load(pairs, range(12))

    padding = -SMALL.member_bytes % BLOCK
    assert sizes == [2 * (BLOCK + SMALL.member_bytes) + padding] * 12


def test_other_pairs_cost_two_reads_and_no_byte_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four draws, two are neighbours of their target; the others take a second call each."""
    samples = [sample(SMALL, key, [0, 1, 2, 3]) for key in KEYS]
    pairs = LatentPairs(write_latents(tmp_path, samples))
    sizes = counting(pairs, monkeypatch)
    for visit in range(4):
        load(pairs, range(12), visit)

    assert len(sizes) == 12 * (2 * 1 + 2 * 2)
    assert sum(sizes) <= 48 * 2 * (SMALL.member_bytes + 2 * BLOCK)


def test_latents_start_on_cache_lines(tmp_path: Path) -> None:
    """Every `.npy` has its data at a multiple of 64 in the file, behind a header NumPy reads."""
    folder = write_latents(tmp_path, [sample(SMALL, "a", [0, 1])])
    data = (folder / "train-000000.tar").read_bytes()
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    members = [row for row in rows if row["extension"] != "json"]

    assert len(members) == 4
    for row in members:
        content = data[row["offset"] : row["offset"] + row["size"]]
        assert np.load(io.BytesIO(content)).shape == SMALL.shape
        assert (row["offset"] + row["size"] - SMALL.data_bytes) % 64 == 0


def test_keys_of_any_length_and_script_are_read(tmp_path: Path) -> None:
    """Names beyond 100 bytes, which USTAR splits, and names beyond ASCII."""
    keys = ["folder/" * 10 + "x" * 80, "d" * 90 + "/" + "e" * 80, "顔/né"]
    pairs = LatentPairs(write_latents(tmp_path, [sample(SMALL, key) for key in keys]))
    batch = load(pairs, [0, 1, 2])

    assert sorted(batch.keys) == sorted(keys)
    assert batch.skipped == []


def test_draws_added_later_leave_old_tars_alone(tmp_path: Path) -> None:
    """A set grows by tars of sources; the new draws find the targets in the old ones."""
    first = write_latent_shard(
        tmp_path / "train-000000.tar", [sample(SMALL, key, [0, 1]) for key in KEYS], SMALL
    )
    old = (tmp_path / "train-000000.tar").read_bytes()
    second = write_latent_shard(
        tmp_path / "train-000001.tar",
        [sample(SMALL, key, [2, 3], gray=[3], targets=False) for key in KEYS],
        SMALL,
    )
    pairs = LatentPairs(publish_latents(tmp_path, [first, second], SMALL))

    assert (tmp_path / "train-000000.tar").read_bytes() == old
    found = set()
    for visit in range(4):
        batch = load(pairs, range(12), visit)
        for row, (key, k) in enumerate(zip(batch.keys, batch.draws, strict=True)):
            target = latent(SMALL, key, *(("gray", 3) if k == 3 else ("target", k % 2)))
            assert (batch.target[row].numpy() == target.astype(np.float16)).all()
            found.add((key, k))
    assert len(found) == 48
    assert list(problems(open_set(tmp_path, "latent set"))) == []


def test_the_pair_table_is_made_from_records_too(tmp_path: Path) -> None:
    """A resumed encode has the shards' records only, and makes the same table of them."""
    shard = write_latent_shard(tmp_path / "train-000000.tar", [sample(SMALL, "a", [0, 1])], SMALL)
    save_record(tmp_path / "record.json", shard)
    record = load_record(tmp_path / "record.json")

    assert record is not None
    assert pair_table(tmp_path, [record]) == pair_table(tmp_path, [shard])


def test_a_draw_without_its_target_is_refused(tmp_path: Path) -> None:
    """New draws of an image that the set does not hold are no pairs; the key is named."""
    shard = write_latent_shard(
        tmp_path / "train-000000.tar", [sample(SMALL, "a", [2], targets=False)], SMALL
    )

    with pytest.raises(UserError, match="a: draw 2 lacks"):
        pair_table(tmp_path, [shard])


def test_a_draw_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    """Two sources of one name would make the pair ambiguous; shard and name are in the message."""
    shards = [
        write_latent_shard(tmp_path / f"train-00000{n}.tar", [sample(SMALL, "a", [0])], SMALL)
        for n in (0, 1)
    ]

    with pytest.raises(UserError, match=r"train-000001\.tar: a\.source_0\.npy occurs twice"):
        pair_table(tmp_path, shards)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 0.0), ("float16", 2e-3)])
def test_floats_come_back_within_their_precision(tmp_path: Path, dtype: str, error: float) -> None:
    """float32 exactly, float16 within half a unit of its last place (values below 4)."""
    form = LatentFormat(channels=4, height=8, width=8, dtype=dtype)
    batch = load(LatentPairs(write_latents(tmp_path, [sample(form, "a")], form)), [0])

    assert batch.source.dtype == getattr(torch, dtype)
    difference = np.abs(batch.source[0].float().numpy() - latent(form, "a", "source", 0)).max()
    assert difference <= error


def test_eight_bits_come_back_within_half_a_step(tmp_path: Path) -> None:
    """Dequantised to float32 with each channel's own scale; beyond four deviations, clipped."""
    mean, std = (0.5, -1.0, 0.0, 2.0), (1.0, 1.5, 1.0, 2.0)
    form = LatentFormat.eight_bit((4, 8, 8), mean, std)
    batch = load(LatentPairs(write_latents(tmp_path, [sample(form, "a")], form)), [0])
    low, high = (np.array(mean) + sign * 4 * np.array(std) for sign in (-1, 1))
    expected = latent(form, "a", "target", 0).transpose(1, 2, 0).clip(low, high).transpose(2, 0, 1)
    difference = np.abs(batch.target[0].numpy() - expected).max(axis=(1, 2))

    assert batch.target.dtype == torch.float32
    assert (difference <= 8 * np.array(std) / 255 / 2 + 1e-6).all()


def test_eight_bits_err_as_stated() -> None:
    """Within the reach the error's root mean square is scale / sqrt(12); with clipping, 1 %."""
    form = LatentFormat.eight_bit((2, 200, 200), (0.0, 0.0), (1.0, 1.0))
    values = latent(form, "x")
    stored = np.load(io.BytesIO(form.encode(values))).astype(np.float32)
    error = stored * form.scale[0] + form.offset[0] - values  # type: ignore[index]

    within = error[np.abs(values) < 4]
    assert np.sqrt(np.mean(within**2)) == pytest.approx(8 / 255 / np.sqrt(12), rel=0.01)
    assert np.sqrt(np.mean(error**2)) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("dtype", "value"), [("float16", 7e4), ("float16", np.nan), ("uint8", np.inf)]
)
def test_what_a_dtype_cannot_hold_is_refused(dtype: str, value: float) -> None:
    """An infinity written quietly would surface as a lost training days later."""
    form = LatentFormat.eight_bit((1, 2, 2), [0.0], [1.0])
    if dtype != "uint8":
        form = LatentFormat(channels=1, height=2, width=2, dtype=dtype)

    with pytest.raises(ValueError, match=f"cannot be stored as {dtype}"):
        form.encode(np.full((1, 2, 2), value, np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "bfloat16"}, "'float32' or 'uint8'"),
        ({"dtype": "uint8"}, "needs both"),
        ({"scale": (1.0,) * 4, "offset": (0.0,) * 4}, "the others need none"),
        ({"mean": (1.0,)}, "1 values for 4 channels"),
        ({"height": 0}, "greater than 0"),
    ],
)
def test_impossible_formats_are_refused(change: dict[str, object], message: str) -> None:
    """The message has what came and what is allowed."""
    values: dict[str, object] = {"channels": 4, "height": 8, "width": 8, **change}
    with pytest.raises(ValueError, match=message):
        LatentFormat(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["vae", "predictor", "degradation"])
def test_foreign_latents_are_refused_by_name(part: str) -> None:
    """The trainer is told which part made them differs, and both values."""
    identity = {"vae": "aa", "predictor": "bb", "degradation": "cc"}
    manifest = {"identity": {**identity, "seeds": [0]}}
    check_belongs(manifest, **identity)

    with pytest.raises(UserError, match=rf"\({part}: '{identity[part]}' -> 'zz'\)"):
        check_belongs(manifest, **{**identity, part: "zz"})


def test_a_table_of_another_set_is_noticed(tmp_path: Path) -> None:
    """Shards of equal length with other samples inside are named at the first read."""
    for name, keys in (("a", KEYS), ("b", list(reversed(KEYS)))):
        write_latents(tmp_path / name, [sample(SMALL, key) for key in keys])
    shard = "train-000000.tar"
    (tmp_path / "b" / shard).replace(tmp_path / "a" / shard)
    batch = load(LatentPairs(tmp_path / "a"), [7, 0, 8])

    assert len(batch.skipped) == 1
    assert f"{shard}: something else is where the pair table has {KEYS[0]}" in batch.skipped[0]
    assert batch.keys == [KEYS[7], KEYS[8], KEYS[8]]
    assert torch.equal(batch.target[1], batch.target[2])
    manifest = read_manifest(tmp_path / "a")
    assert manifest is not None
    assert [line.partition(": SHA-256")[0] for line in damaged(tmp_path / "a", manifest)] == [shard]


def test_a_pair_table_that_is_not_of_the_index_is_noticed(tmp_path: Path) -> None:
    """A target where the index has another member, and one that reaches over the end of a tar."""
    samples = [sample(SMALL, key) for key in KEYS]
    folder = write_latents(tmp_path, samples)
    rows = pq.read_table(folder / PAIRS).to_pylist()
    rows[0]["target_offset"] = rows[1]["target_offset"]
    rows[1]["target_offset"] = 10**9
    rows[2]["target_size"] += 1
    rows[3]["target_crc32"] ^= 1
    write_bytes(folder / PAIRS, parquet_bytes(pa.Table.from_pylist(rows, PAIR)))
    restate(folder, lambda said: said["files"].update({PAIRS: file_entry(folder / PAIRS)}))
    found = list(problems(open_set(folder, "latent set")))

    assert [line.split(": ")[1].partition(" of ")[0] for line in found] == [
        f"index.parquet has something else at byte {rows[0]['target_offset']}",
        "index.parquet has something else at byte 1000000000",
        f"{SMALL.member_bytes + 1} bytes, the format has {SMALL.member_bytes}",
        "pairs.parquet and index.parquet have different checksums",
    ]


@pytest.mark.parametrize("draws", [[0], [0, 2]])
@pytest.mark.parametrize("extension", ["source_0.npy", "target_0.npy"])
@pytest.mark.parametrize("byte", [0, BLOCK + 70])
def test_a_damaged_header_is_noticed(
    tmp_path: Path, draws: list[int], extension: str, byte: int
) -> None:
    """Of either member, its name or its shape, whether the pair is read at once or in two."""
    folder = write_latents(tmp_path, [sample(SMALL, key, draws) for key in ("a", "b")])
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    (place,) = [r["offset"] for r in rows if (r["key"], r["extension"]) == ("a", extension)]
    with (folder / "train-000000.tar").open("r+b") as file:
        file.seek(place - BLOCK + byte)
        file.write(b"?")
    found = [load(LatentPairs(folder), [0, 1], visit) for visit in range(len(draws))]
    messages = [message for batch in found for message in batch.skipped]

    assert len(messages) == (1 if extension == "source_0.npy" else len(draws))
    assert all(f"the pair table has a.{extension}" in message for message in messages)
    assert {key for batch in found for key in batch.keys[:1] if batch.skipped} == {"b"}


def test_another_split_is_another_data_set(tmp_path: Path) -> None:
    """The splits of a set share no sample and no identity; a split that is not there is named."""
    folder = tmp_path / "set"
    train = [
        write_latent_shard(folder / "train-000000.tar", [sample(SMALL, k) for k in "ab"], SMALL),
        write_latent_shard(folder / "val-000000.tar", [sample(SMALL, k) for k in "c"], SMALL),
    ]
    publish_latents(folder, train, SMALL)

    assert load(LatentPairs(folder), [0, 1]).keys == ["a", "b"]
    assert load(LatentPairs(folder, split="val"), [0]).keys == ["c"]
    assert LatentPairs(folder).digest != LatentPairs(folder, split="val").digest
    with pytest.raises(UserError, match="no pair of split 'test'"):
        LatentPairs(folder, split="test")


def test_no_set_is_said_so(tmp_path: Path) -> None:
    """A folder without a manifest holds no set, whatever else it holds."""
    with pytest.raises(UserError, match="this is an empty folder; a latent set is wanted"):
        LatentPairs(tmp_path)


def test_the_json_holds_what_replays_a_draw(tmp_path: Path) -> None:
    """Parameters of each draw, and fields of the encoder, are in the sample's JSON as given."""
    one = sample(SMALL, "a", [0])
    one.draws[0].parameters["blur_sigma"] = [1.0, 2.0]  # type: ignore[index]
    one.record["vae"] = "digest"  # type: ignore[index]
    write_latent_shard(tmp_path / "train-000000.tar", [one], SMALL)
    (found,) = wds.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False)

    assert json.loads(found["json"]) == {
        "key": "a",
        "vae": "digest",
        "draws": {
            "0": {"flip": False, "gray_target": False, "parameters": {"blur_sigma": [1.0, 2.0]}}
        },
    }


def test_the_pair_table_names_every_pair(tmp_path: Path) -> None:
    """One row per draw, sorted by split, key and draw, with the place of both members."""
    folder = write_latents(tmp_path, [sample(SMALL, key, [1, 0]) for key in ("b", "a")])
    rows = pq.read_table(folder / PAIRS).to_pylist()

    assert [(row["key"], row["draw"], row["flip"]) for row in rows] == [
        ("a", 0, False),
        ("a", 1, True),
        ("b", 0, False),
        ("b", 1, True),
    ]
