"""Latents of an earlier set: copied where nothing has changed them, else computed."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from datasets.reading.image_set import ImageSet
from pipelines.encode.config import VerifyConfig
from pipelines.encode.job import Encoding
from pipelines.encode.networks import Encoded, Encoder
from pipelines.encode.report import metrics
from pipelines.encode.verify import problems, recomputed
from tests.conftest import picture
from tests.support.encoding_jobs import (
    FEW,
    MANY,
    SIZE,
    Stopping,
    bytes_of,
    copied,
    curated,
    encode_few,
    encode_many,
    grown_sets,
    job,
    manifest_of,
    members,
    published,
    run,
    write_networks,
    write_regressor,
)

pytestmark = pytest.mark.usefixtures("probe_of_two")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return what `grown_sets` writes."""
    with grown_sets(tmp_path_factory.mktemp("world")) as folder:
        yield folder


@pytest.fixture(scope="module")
def many(world: Path) -> Path:
    """Encode the larger image set without copying; returns the set."""
    encode_many(world, world / "many")
    return world / "many"


class Watched:
    """Counts the images of every call of `Encoder.encode`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[list[str]] = []
        real = Encoder.encode

        def encode_and_count(
            encoder: Encoder, images: Tensor, names: list[str], **options: Any
        ) -> list[Encoded]:
            self.names.append(list(names))
            return real(encoder, images, names, **options)

        monkeypatch.setattr(Encoder, "encode", encode_and_count)

    def latents(self) -> list[str]:
        """Name the latents that were computed, without those of the probe."""
        flat = [name for names in self.names for name in names]
        return [name for name in flat if "_" in name.rpartition(".")[2]]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"posterior": "sample", "dtype": "float32", "keep_images": True},
        {"source": "lq", "predictor": "", "samples_per_shard": 5},
        {"source": "regressed"},
    ],
    ids=str,
)
def test_a_grown_image_set_has_only_its_new_images_encoded(
    world: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """And is, to the byte, what encoding all of it makes: shards, tables, manifest."""
    if fields.get("source") == "regressed":
        fields = {**fields, "regressor": str(write_regressor(tmp_path))}
    earlier, fresh = world / "earlier", many
    if fields:
        earlier, fresh = tmp_path / "earlier", tmp_path / "fresh"
        encode_few(world, earlier, **{**fields, "samples_per_shard": 3})
        encode_many(world, fresh, **fields)
    watched = Watched(monkeypatch)
    encode_many(world, tmp_path / "set", reuse=str(earlier), **fields)
    totals = manifest_of(earlier)["totals"]

    assert bytes_of(tmp_path / "set") == bytes_of(fresh)
    assert totals["gray"] > 0
    assert copied(tmp_path / "set") == (2 * FEW + totals["gray"], totals["pairs"])
    assert {name.partition(".")[0] for name in watched.latents()} == {
        f"photo-{number}" for number in range(FEW, MANY)
    }
    assert list(problems(tmp_path / "set")) == []
    assert list(recomputed(tmp_path / "set", VerifyConfig(recompute=MANY))) == []


def test_another_predictor_leaves_the_targets(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gray ones too; the sources are the new predictor's."""
    predictor = str(write_networks(tmp_path / "other", seed=1) / "predictor")
    encode_few(world, tmp_path / "fresh", predictor=predictor)
    capsys.readouterr()
    watched = Watched(monkeypatch)
    encode_few(world, tmp_path / "set", predictor=predictor, reuse=str(world / "earlier"))
    printed = capsys.readouterr().out
    totals = manifest_of(tmp_path / "set")["totals"]

    assert bytes_of(tmp_path / "set") == bytes_of(tmp_path / "fresh")
    assert copied(tmp_path / "set") == (2 * FEW + totals["gray"], 0)
    assert all(".source_" in name for name in watched.latents())
    assert "targets of images that have not changed are copied, but not sources (predict" in printed
    assert f"{2 * FEW} latents computed, {2 * FEW + totals['gray']} reused" in printed
    found = metrics(manifest_of(tmp_path / "set"), [])
    assert (found["latents/computed"], found["latents/reused"]) == (10, 10 + totals["gray"])


def test_a_regressor_leaves_the_targets(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a set of posterior means to one of regressed sources; both changes are named."""
    fields = {"source": "regressed", "regressor": str(write_regressor(tmp_path))}
    encode_few(world, tmp_path / "fresh", **fields)
    capsys.readouterr()
    encode_few(world, tmp_path / "set", reuse=str(world / "earlier"), **fields)
    said = capsys.readouterr().out.partition("\n")[0]

    assert bytes_of(tmp_path / "set") == bytes_of(tmp_path / "fresh")
    assert copied(tmp_path / "set")[1] == 0
    assert re.search(
        r"not sources \(regressor: None -> '\w+'; source: 'posterior_mean' -> 'regressed'\)$", said
    )


@pytest.mark.parametrize("fields", [{"seed": 1}, {"degradation": "gfpgan-v1"}], ids=str)
def test_other_draws_leave_the_targets_of_both_flips(
    world: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """Another seed or degradation: gray targets belong to their draws, and go with them."""
    encode_few(world, tmp_path / "fresh", **fields)
    encode_few(world, tmp_path / "set", reuse=str(world / "earlier"), **fields)

    assert bytes_of(tmp_path / "set") == bytes_of(tmp_path / "fresh")
    assert copied(tmp_path / "set") == (2 * FEW, 0)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"dtype": "float32"}, r"dtype: 'float16' -> 'float32'"),
        ({"posterior": "sample"}, r"posterior: 'mode' -> 'sample'"),
        ({"precision": "bfloat16"}, r"precision: 'float32' -> 'bfloat16'"),
        ({"vae": "other"}, r"vae: '"),
    ],
    ids=str,
)
def test_what_makes_other_latents_copies_nothing_and_says_so(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fields: dict[str, Any],
    named: str,
) -> None:
    """Only the draws are the same, as they would be without: functions of seed, key and number."""
    if "vae" in fields:
        fields = {"vae": str(write_networks(tmp_path / "other", seed=1) / "vae")}
    encode_few(world, tmp_path / "fresh", **fields)
    encode_few(world, tmp_path / "set", reuse=str(world / "earlier"), **fields)
    earlier, found = members(world / "earlier"), members(tmp_path / "set")

    assert published(tmp_path / "set") == published(tmp_path / "fresh")
    assert f"nothing to copy ({named}" in capsys.readouterr().out
    assert copied(tmp_path / "set") == (0, 0)
    assert all(earlier[name] == found[name] for name in earlier if name.endswith(".json"))


def test_a_changed_image_is_encoded_anew(world: Path, tmp_path: Path) -> None:
    """The same key with other pixels is another image; its neighbours are copied."""
    shutil.copytree(world / "raw", tmp_path / "raw")
    picture(77, SIZE + 16, SIZE + 9).save(tmp_path / "raw" / "photo-2.png")
    images = str(curated(tmp_path))
    encode_few(world, tmp_path / "fresh", input=images)
    encode_few(world, tmp_path / "set", input=images, reuse=str(world / "earlier"))
    earlier, found = members(world / "earlier"), members(tmp_path / "set")
    same = {name for name in found if name.endswith(".npy") and found[name] == earlier[name]}

    assert bytes_of(tmp_path / "set") == bytes_of(tmp_path / "fresh")
    assert {name.partition(".")[0] for name in same} == {f"photo-{n}" for n in (0, 1, 3, 4)}
    assert sum(copied(tmp_path / "set")) == len(same)


def test_a_set_that_grew_and_one_that_copied_are_copied_from(
    world: Path, many: Path, tmp_path: Path
) -> None:
    """Draws of several generations are found in their tars; sums go on from set to set."""
    encode_few(world, tmp_path / "one", draws=1)
    encode_few(world, tmp_path / "one", draws=3)
    encode_many(world, tmp_path / "two", draws=2, reuse=str(tmp_path / "one"))
    encode_few(world, tmp_path / "three", draws=1)
    encode_few(world, tmp_path / "three", draws=3, reuse=str(tmp_path / "two"))

    assert bytes_of(tmp_path / "two") == bytes_of(many)
    assert copied(tmp_path / "two")[1] == 2 * FEW
    assert bytes_of(tmp_path / "three") == bytes_of(tmp_path / "one")
    assert copied(tmp_path / "three")[1] == FEW  # draw 1; draw 2 is in `one` alone


def test_a_stopped_job_that_copies_goes_on(world: Path, many: Path, tmp_path: Path) -> None:
    """Stopped and resumed it makes the same bytes, and counts what it copied once."""
    fields: dict[str, Any] = {
        "input": str(world / "more" / "images"),
        "draws": 2,
        "degradation": "gray",
        "batch": None,
        "reuse": str(world / "earlier"),
    }
    with pytest.raises(KeyboardInterrupt):
        Encoding(job(world, tmp_path / "set", **fields)).run(Stopping(2))
    run(world, tmp_path / "set", **fields)
    totals = manifest_of(world / "earlier")["totals"]

    assert bytes_of(tmp_path / "set") == bytes_of(many)
    assert copied(tmp_path / "set") == (2 * FEW + totals["gray"], totals["pairs"])


def test_neighbours_fill_the_batch_of_what_is_copied(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New images of a shard pass in full batches, however many lie between that are copied."""
    fields: dict[str, Any] = {"samples_per_shard": 8, "batch": 2}
    shutil.copytree(world / "raw", tmp_path / "raw")
    for number in (1, 3):
        picture(70 + number, SIZE, SIZE + 9).save(tmp_path / "raw" / f"photo-{number}.png")
    images = ImageSet(curated(tmp_path))
    watched = Watched(monkeypatch)
    encode_few(
        world, tmp_path / "set", input=str(images.folder), reuse=str(world / "earlier"), **fields
    )
    together = [names for names in watched.names if names[0].endswith(".target_0")]
    split_of = {row["key"]: row["shard"].partition("-")[0] for row in images.rows.to_pylist()}
    expected = 1 if split_of["photo-1"] == split_of["photo-3"] else 2

    assert len(together) == expected
    assert list(recomputed(tmp_path / "set", VerifyConfig(recompute=FEW))) == []


def test_eight_bit_levels_are_compared(world: Path, tmp_path: Path) -> None:
    """Where the same probe laid them, all is copied; where others did, nothing is."""
    encode_few(world, tmp_path / "earlier", dtype="uint8")
    reuse = str(tmp_path / "earlier")
    encode_few(world, tmp_path / "same", dtype="uint8", reuse=reuse, samples_per_shard=2)
    encode_few(world, tmp_path / "fresh", dtype="uint8", samples_per_shard=2)
    encode_many(world, tmp_path / "more", dtype="uint8", reuse=reuse)

    assert bytes_of(tmp_path / "same") == bytes_of(tmp_path / "fresh")
    assert copied(tmp_path / "same")[1] == 2 * FEW
    assert copied(tmp_path / "more") == (0, 0)
