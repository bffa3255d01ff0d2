"""A set is checked when it is opened: its kind, its tables, its shards, and each byte it gives."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from datasets.degradation.parameters import degradation_preset
from datasets.latent_pairs import PAIRS
from datasets.reading.image_set import ImageSet
from datasets.reading.images import Crops, OnlinePairs
from datasets.reading.latents import LatentPairs
from datasets.reading.memory import Memory
from datasets.reading.order import Picks
from datasets.sets import claimed_set, open_set
from datasets.shards import INDEX, parquet_bytes
from infra.errors import UserError
from infra.storage import write_bytes
from tests.conftest import picture
from tests.support.published_sets import SMALL, aged, restate, sample, write_images, write_latents
from tests.support.training_sets import write_image_set

KEYS = [f"{number}" for number in range(8)]
Opens = Callable[[Path], object]
OPENED: dict[str, Opens] = {INDEX: ImageSet, PAIRS: LatentPairs}
"""By the table that each kind of set is read by: what opens the set."""


def publish(folder: Path, table: str, names: str = "01234567", draws: int = 1) -> Path:
    """Publish a set that is read by this table; returns its folder."""
    if table == PAIRS:
        return write_latents(folder, [sample(SMALL, name, range(draws)) for name in names])
    return write_images(folder, [(f"{name}{draws}", pixels(int(name))) for name in names])


def pixels(number: int, side: int = 16) -> Any:
    """Return a small picture: RGB uint8."""
    return np.asarray(picture(number, side, side))


def halve(path: Path, other: Path) -> None:
    """Keep the first half of a table's rows."""
    table = pq.read_table(path)
    write_bytes(path, parquet_bytes(table.slice(0, len(table) // 2)))


def replace(path: Path, other: Path) -> None:
    """Put the table of another set in its place."""
    shutil.copy(other / path.name, path)


def flip(path: Path, other: Path) -> None:
    """Change one bit of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("table", OPENED)
@pytest.mark.parametrize("names", ["01234567", "76543210"], ids=["stale", "of-another"])
@pytest.mark.parametrize("harm", [halve, replace, flip])
def test_a_table_that_is_not_the_sets_is_refused(
    tmp_path: Path, table: str, names: str, harm: Callable[[Path, Path], None]
) -> None:
    """Half the rows, the table of the set before it grew or of another one, a flipped bit."""
    folder = publish(tmp_path / "set", table, draws=2)
    other = publish(tmp_path / "other", table, names)
    OPENED[table](folder)
    harm(folder / table, other)

    with pytest.raises(UserError, match=rf"{table} does not belong.* says \w{{12}}; copy the set"):
        OPENED[table](folder)
    shutil.copytree(other, folder, dirs_exist_ok=True)  # as the message advises
    OPENED[table](folder)


@pytest.mark.parametrize("table", OPENED)
def test_a_table_that_is_missing_is_named(tmp_path: Path, table: str) -> None:
    """The file, and what to do."""
    folder = publish(tmp_path, table)
    (folder / table).unlink()

    with pytest.raises(UserError, match=rf"{table}: No such file or directory; copy the set anew"):
        OPENED[table](folder)


@pytest.mark.parametrize("table", OPENED)
def test_a_manifest_and_a_table_of_different_shards_are_refused(tmp_path: Path, table: str) -> None:
    """A table may have its digest and yet list what the manifest does not."""
    folder = publish(tmp_path, table)
    restate(folder, lambda manifest: manifest["shards"].pop())

    with pytest.raises(UserError, match=rf"{table} has members in train-000001\.tar, which"):
        OPENED[table](folder)


def test_samples_are_counted(tmp_path: Path) -> None:
    """Of every shard, in the index and in the manifest."""
    folder = publish(tmp_path, INDEX)
    restate(folder, lambda manifest: manifest["shards"][0].update(samples=6))

    with pytest.raises(UserError, match=r"has 5 samples in train-000000\.tar, .* has 6; copy"):
        ImageSet(folder)


@pytest.mark.parametrize("table", OPENED)
def test_a_shard_that_is_missing_or_cut_is_found_at_once(tmp_path: Path, table: str) -> None:
    """And not when its first sample is read, hours later."""
    folder = publish(tmp_path, table)
    with (folder / "train-000001.tar").open("r+b") as file:
        file.truncate(1024)
    with pytest.raises(UserError, match=r"1 of 2 shards are missing or .*first train-000001\.tar"):
        OPENED[table](folder)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """What it would mean is not known here."""
    folder = publish(tmp_path, INDEX)
    restate(folder, lambda manifest: manifest.update(format="latent-pmrf/samples/3"))

    with pytest.raises(UserError, match=r"format latent-pmrf/samples/3; .*reads .*samples/2: take"):
        ImageSet(folder)


def load(pairs: LatentPairs, count: int = 8) -> Any:
    """Load the first pairs."""
    return pairs.load(picks(count), Memory("reused"))


def picks(count: int) -> Picks:
    """Pick the first samples."""
    zeros = np.zeros(count, np.int64)
    return Picks(zeros, np.arange(count), zeros, 0)


def test_sets_of_the_first_format_are_read(tmp_path: Path) -> None:
    """They give the same samples, and no check that they cannot give."""
    images, latents = publish(tmp_path / "images", INDEX), publish(tmp_path / "latents", PAIRS)
    new = ImageSet(images), load(LatentPairs(latents))
    old = ImageSet(aged(images, INDEX)), load(LatentPairs(aged(latents, INDEX, PAIRS)))

    assert all((old[0].pixels(n) == new[0].pixels(n)).all() for n in range(8))
    assert (old[1].source == new[1].source).all()
    with pytest.raises(
        UserError, match=r"--check-data compares checksums.* leave --check-data out"
    ):
        LatentPairs(latents, checked=True)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("draws", [1, 4])
def test_every_flipped_bit_of_a_latent_is_noticed_by_choice(
    tmp_path: Path, dtype: Any, draws: int
) -> None:
    """Of source and target, in pairs read at once and in two; unchecked, it passes."""
    form = dataclasses.replace(SMALL, dtype=dtype)
    folder = write_latents(tmp_path, [sample(form, key, range(draws)) for key in "ab"], form)
    rows = pq.read_table(folder / PAIRS).to_pylist()
    shard = folder / "train-000000.tar"
    whole = shard.read_bytes()
    checked, unchecked = LatentPairs(folder, checked=True), LatentPairs(folder)
    assert load(checked, 2).skipped == []
    batch = load(checked, 2)
    (row,) = [row for row in rows if (row["key"], row["draw"]) == ("a", batch.draws[0])]
    for side in ("source", "target"):
        start = row[f"{side}_offset"] + 128
        for place in range(start, start + form.data_bytes, 97):
            data = bytearray(whole)
            data[place] ^= 1 << place % 8
            shard.write_bytes(data)
            (message,) = load(checked, 2).skipped
            assert f"train-000000.tar: a.{side}_" in message
            assert "not the checksum" in message
            assert load(unchecked, 2).skipped == []


def test_every_flipped_bit_of_an_image_is_noticed(tmp_path: Path) -> None:
    """Also those that a decoder of PNG lets pass, some of which change pixels."""
    folder = write_images(tmp_path, [("a", pixels(0)), ("b", pixels(1))])
    place, *_ = pq.read_table(folder / INDEX).to_pylist()
    shard = folder / "train-000000.tar"
    whole = shard.read_bytes()
    crops = Crops([ImageSet(folder)], crop=None)
    for byte in range(place["offset"], place["offset"] + place["size"], 5):
        data = bytearray(whole)
        data[byte] ^= 1 << byte % 8
        shard.write_bytes(data)
        (message,) = crops.load(picks(2), Memory("reused")).skipped
        assert message.startswith("train-000000.tar: a.png: not the checksum")


def test_image_sets_that_cannot_share_a_batch_are_refused_when_mixed(tmp_path: Path) -> None:
    """Whole images of two sizes; crops of both are allowed."""
    small, large = (ImageSet(write_image_set(tmp_path / f"{side}", size=side)) for side in (32, 48))
    Crops([small, large], crop=16)
    for mix in (
        lambda: Crops([small, large], crop=None),
        lambda: OnlinePairs([small, large], degradation_preset("pmrf")),
    ):
        with pytest.raises(UserError, match=r"32 has images of 32 x 32 pixels, .*48 of 48 x 48"):
            mix()


def test_a_damaged_set_still_has_claims(tmp_path: Path) -> None:
    """What verifies a set reads it although its shards are gone."""
    folder = publish(tmp_path, INDEX)
    digest = open_set(folder, "image set").digest
    (folder / "train-000000.tar").unlink()

    assert claimed_set(folder, "image set").digest == digest
