"""Encoding where everything lies in a bucket: the set is the one that is made on a disk."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from datasets.latent_pairs import PAIRS
from datasets.reading.latents import LatentPairs
from datasets.sets import open_set
from datasets.shards import INDEX, MANIFEST
from infra.folders.bucket_path import BucketPath
from infra.paths import glob
from pipelines.encode.config import VerifyConfig
from pipelines.encode.job import Encoding
from pipelines.encode.repair import repair
from pipelines.encode.sums import STATISTICS
from pipelines.encode.verify import problems, recomputed
from tests.support.curation_jobs import InProcess
from tests.support.damage import flip, truncate
from tests.support.encoding_jobs import (
    copied,
    estimated,
    job,
    manifest_of,
    published,
    run,
    write_images,
    write_networks,
)
from tests.support.faulty_proxy import FaultyProxy
from tests.support.in_a_bucket import damaged, inputs_uploaded

IMAGES = 5


class World(NamedTuple):
    """Networks, images and a set of two generations of draws, on a disk and in a bucket."""

    disk: Path
    bucket: BucketPath


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, s3_proxy: FaultyProxy) -> Iterator[World]:
    """Make networks and images on the disk and upload them; encode in both places."""
    disk = tmp_path_factory.mktemp("world")
    write_networks(disk)
    write_images(disk, IMAGES)
    bucket = inputs_uploaded(disk, "s3://tests/encode")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for draws in (1, 2):
            run(disk, disk / "latents", draws=draws)
            run(bucket, bucket / "latents", draws=draws)
        yield World(disk, bucket)


def test_the_set_is_the_one_made_on_a_disk(world: World) -> None:
    """Shards, tables, manifest and the version before it grew; and nothing is left of the work."""
    here, there = world.disk / "latents", world.bucket / "latents"
    assert published(there) == published(here)
    names = {path.name for path in (here / "versions").iterdir()}
    assert {path.name for path in (there / "versions").iterdir()} == names
    for name in names:
        for table in (MANIFEST, INDEX, PAIRS, STATISTICS):
            kept = (there / "versions" / name / table).read_bytes()
            assert kept == (here / "versions" / name / table).read_bytes()
    state = {path.name for path in (there / ".encode").iterdir()}
    assert state == {path.name for path in (here / ".encode").iterdir()}


def test_pages_and_pictures_are_there(world: World) -> None:
    """The page shows the pictures of the probe, which lie beside the state."""
    page = (world.bucket / "latents" / "report.html").read_text()

    assert page.count("<img") == (world.disk / "latents" / "report.html").read_text().count("<img")
    assert len(glob(world.bucket / "latents" / ".encode" / "probe", "*.png")) == IMAGES * 5


def test_a_set_and_its_versions_are_verified(world: World) -> None:
    """In all claims; and of the set some latents are computed again from their pixels."""
    there = world.bucket / "latents"
    (version,) = (there / "versions").iterdir()

    assert list(problems(there)) == []
    assert list(problems(version)) == []
    assert list(recomputed(there, VerifyConfig(recompute=2))) == []


def test_the_pairs_of_a_version_are_read(world: World) -> None:
    """A version in a bucket has no shards of its own: they lie with the set's."""
    (there,) = (world.bucket / "latents" / "versions").iterdir()
    (here,) = (world.disk / "latents" / "versions").iterdir()

    assert open_set(there, "latent set").digest == open_set(here, "latent set").digest
    assert LatentPairs(there, split="train").digest == LatentPairs(here, split="train").digest


def test_a_finished_set_is_left_alone(
    world: World, s3_proxy: FaultyProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command says so; nothing is computed and nothing is written but the lock."""
    s3_proxy.harmless()
    run(world.bucket, world.bucket / "latents", draws=2)
    written = [seen.path for seen in s3_proxy.seen if seen.method in ("PUT", "DELETE")]

    assert "complete already; nothing to do" in capsys.readouterr().out
    assert [path for path in written if "/lock/" not in path] == []


@pytest.mark.parametrize("earlier", ["latents", "version"])
def test_latents_are_copied_from_a_bucket(world: World, tmp_path: Path, earlier: str) -> None:
    """From a set, or a version of one; the new set is the one that copies on the disk make."""
    here, there = (place / "latents" for place in world)
    if earlier == "version":
        (here,), (there,) = ((place / "versions").iterdir() for place in (here, there))
    output = world.bucket / f"from-{earlier}"
    run(world.disk, tmp_path / "set", draws=2, reuse=str(here))
    run(world.bucket, output, draws=2, reuse=str(there))

    assert published(output) == published(tmp_path / "set")
    assert copied(output) == (2 * IMAGES, (2 if earlier == "latents" else 1) * IMAGES)


@pytest.mark.parametrize(
    ("name", "damage", "encoded"),
    [
        ("train-000000.tar", flip, 1),
        ("pairs.parquet", truncate, 0),
        ("manifest.json", flip, 0),
        pytest.param("train-000001.tar", Path.unlink, 1, marks=pytest.mark.slow),
        pytest.param("index.parquet", Path.unlink, 0, marks=pytest.mark.slow),
        pytest.param("statistics.parquet", flip, 4, marks=pytest.mark.slow),
    ],
)
def test_what_is_damaged_in_a_bucket_is_made_again(
    world: World, tmp_path: Path, name: str, damage: Callable[[Path], object], encoded: int
) -> None:
    """Exactly that, and byte for byte."""
    there = world.bucket / "latents"
    damaged(there / name, damage, tmp_path)
    assert list(problems(there)) != []
    engine = InProcess()

    assert repair(Encoding(job(world.bucket, there, draws=2)), engine) == [name]
    assert engine.count("encode") == encoded
    assert published(there) == published(world.disk / "latents")


def test_overwriting_replaces_the_set(world: World, tmp_path: Path) -> None:
    """The shards of the set before, which had more of them, are gone."""
    there = world.bucket / "replaced"
    run(world.bucket, there, samples_per_shard=1, limit=3)
    run(world.bucket, there, overwrite=True, limit=3)
    run(world.disk, tmp_path / "set", limit=3)

    assert published(there) == published(tmp_path / "set")
    assert len(glob(there, "*.tar")) == len(manifest_of(there)["shards"])


def test_a_dry_run_writes_nothing(world: World, s3_proxy: FaultyProxy) -> None:
    """It says hours and GB, with what is copied, from what lies in the bucket."""
    s3_proxy.harmless()
    said = estimated(world.bucket, world.bucket / "planned", reuse=str(world.bucket / "latents"))

    assert "10 targets and 5 sources of 5 images" in said
    assert not (world.bucket / "planned").exists()
    written = {seen.path for seen in s3_proxy.seen if seen.method not in ("GET", "HEAD")}
    assert len(written) == 1  # an object that tells whether it may be written, and is gone again
