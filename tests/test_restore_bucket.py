"""Restoring where everything lies in a bucket: the pictures are those that are made on a disk."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from infra.errors import UserError
from infra.folders.bucket_path import BucketPath
from infra.s3.lease import held
from tests.conftest import picture
from tests.support.encoding_jobs import Stopping
from tests.support.faulty_proxy import FaultyProxy
from tests.support.in_a_bucket import uploaded
from tests.support.restore_jobs import pictures, restore
from tests.support.tiny_bundle import SIDE, write_faces, write_tiny_bundle

FACES = 4


class World(NamedTuple):
    """A model and faces, on a disk and in a bucket; restored on the disk."""

    disk: Path
    bucket: BucketPath


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, s3_proxy: FaultyProxy) -> Iterator[World]:
    """Write them on the disk, upload them, and restore them on the disk."""
    disk = tmp_path_factory.mktemp("world")
    write_tiny_bundle(disk / "model", alignment="any")
    write_faces(disk / "lq", FACES)
    restore(disk / "lq", disk / "out", disk / "model", samples=2)
    bucket = uploaded(disk, "s3://tests/restore")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield World(disk, bucket)


def there(output: BucketPath, names: Iterable[str]) -> dict[str, bytes]:
    """Return the bytes of files in a bucket by name."""
    return {name: (output / name).read_bytes() for name in names}


def test_a_killed_job_is_finished_from_the_bucket_alone(world: World) -> None:
    """Inputs, model, pictures and state are there; the bytes are those made on a disk."""
    disk, bucket = world
    output = bucket / "killed"
    with pytest.raises(KeyboardInterrupt):
        restore(bucket / "lq", output, bucket / "model", Stopping(2), samples=2)
    engine = restore(bucket / "lq", output, bucket / "model", samples=2)
    assert 0 < engine.count("restore") < FACES
    expected = pictures(disk / "out") | {
        name: (disk / "out" / name).read_bytes() for name in ("results.parquet", "faces.parquet")
    }
    assert there(output, expected) == expected
    assert (output / "report.html").read_text().count("<img") == 3 * FACES

    assert restore(bucket / "lq", output, bucket / "model", samples=2).units == []


def test_what_changes_in_the_bucket_is_restored_anew(world: World, tmp_path: Path) -> None:
    """An object with another ETag, a picture that was deleted, another configuration."""
    disk, bucket = world
    lq, output = uploaded(disk / "lq", "s3://tests/changing/lq"), bucket / "changing"
    restore(lq, output, disk / "model")
    before = there(output, ["face-0.png", "face-1.png"])
    picture(40, SIDE, SIDE).save(tmp_path / "face-0.png")
    uploaded(tmp_path, "s3://tests/changing/lq")
    (output / "face-1.png").unlink()
    engine = restore(lq, output, disk / "model")
    after = there(output, ["face-0.png", "face-1.png"])

    assert len(engine.units) == 2
    assert after["face-0.png"] != before["face-0.png"]
    assert after["face-1.png"] == before["face-1.png"]

    restore(lq, output, disk / "model", overwrite=True, method="posterior-mean")
    assert there(output, ["face-1.png"])["face-1.png"] != before["face-1.png"]


def test_a_second_job_in_the_bucket_is_refused(world: World) -> None:
    """By the lease of the first."""
    disk, bucket = world
    output = bucket / "taken"
    records = (output / ".restore" / "lock").folder
    with (
        held(records, str(output)),
        pytest.raises(UserError, match="another process"),
    ):
        restore(disk / "lq", output, disk / "model")
