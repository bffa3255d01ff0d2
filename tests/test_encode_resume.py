"""Encoding again: more draws, stopped jobs, disks that fill up, other orders and places."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from pipelines.encode.config import VerifyConfig
from pipelines.encode.job import Encoding
from pipelines.encode.verify import problems, recomputed
from tests.support.curation_jobs import InProcess
from tests.support.encoding_jobs import (
    Stopping,
    job,
    manifest_of,
    members,
    published,
    run,
    write_images,
    write_networks,
)

pytestmark = pytest.mark.usefixtures("probe_of_two")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with small networks and an image set of seven."""
    folder = tmp_path_factory.mktemp("world")
    write_networks(folder)
    write_images(folder)
    return folder


def test_more_draws_leave_the_old_shards_as_they_are(world: Path, tmp_path: Path) -> None:
    """The added draws are, bit for bit, those of a set that had them from the start."""
    run(world, tmp_path / "grown")
    before = published(tmp_path / "grown")
    engine = run(world, tmp_path / "grown", draws=3)
    run(world, tmp_path / "fresh", draws=3)
    after = published(tmp_path / "grown")
    old = [name for name in before if name.endswith(".tar")]

    assert [unit["name"] for stage, unit in engine.units if unit.get("name") in old] == []
    assert engine.count("probe") == 0
    assert all(after[name] == before[name] for name in old)
    grown, fresh = members(tmp_path / "grown"), members(tmp_path / "fresh")
    latents = {name for name in fresh if name.endswith(".npy")}
    assert latents == {name for name in grown if name.endswith(".npy")}
    assert all(grown[name] == fresh[name] for name in latents)
    assert manifest_of(tmp_path / "grown")["draws"] == 3
    assert list(problems(tmp_path / "grown")) == []
    assert list(recomputed(tmp_path / "grown", VerifyConfig(recompute=2))) == []


def test_bytes_depend_on_neither_place_nor_order_nor_workers(world: Path, tmp_path: Path) -> None:
    """Two sets of one configuration are one, their manifests included."""

    class Forwards(InProcess):
        def run(self, name: str, units: Any, *rest: Any) -> Iterator[dict[str, Any]]:
            return super().run(name, list(reversed(units)), *rest)

    run(world, tmp_path / "one", draws=2)
    Encoding(job(world, tmp_path / "two", draws=2, workers=3)).run(Forwards())

    assert published(tmp_path / "one") == published(tmp_path / "two")


def test_a_stopped_job_goes_on_shard_by_shard(world: Path, tmp_path: Path) -> None:
    """Finished shards are not encoded again; a run that wants more draws finishes these first."""
    with pytest.raises(KeyboardInterrupt):
        Encoding(job(world, tmp_path / "set", draws=2)).run(Stopping(2))
    engine = run(world, tmp_path / "set", draws=3)
    run(world, tmp_path / "fresh", draws=2)
    run(world, tmp_path / "fresh", draws=3)
    shards = len(manifest_of(tmp_path / "set")["shards"])

    assert engine.count("probe") == 0
    assert engine.count("encode") == shards - 2  # the one that was cut short is there too
    assert published(tmp_path / "set") == published(tmp_path / "fresh")


def test_what_is_left_of_a_published_generation_goes(world: Path, tmp_path: Path) -> None:
    """As of a job killed while it removed its staging; a later generation that was begun stays."""
    run(world, tmp_path / "set", limit=1)
    state = tmp_path / "set" / ".encode"
    for name in ("draws-0-1", "draws-1-3"):
        (state / name).mkdir()
        (state / name / "train-000000.tar.sums.json").touch()
    (state / "finished.json").unlink()
    engine = run(world, tmp_path / "set", limit=1)

    assert engine.units == []
    assert [path.name for path in state.glob("draws-*")] == ["draws-1-3"]


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_no_write_that_fails_leaves_a_wrong_set(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draws: int, stride: int
) -> None:
    """Fail the n-th rename of a new set and of a growing one; every n among the slow tests."""
    few: dict[str, Any] = {"limit": 1, "track": False}
    for number in range(1, draws + 1):
        run(world, tmp_path / "fresh", draws=number, **few)
        if number < draws:
            shutil.copytree(tmp_path / "fresh", tmp_path / "before")
    expected, real, failures = published(tmp_path / "fresh"), os.replace, 0

    class Failing:
        """A rename that fails from the n-th on."""

        def __init__(self, after: int) -> None:
            self.left = after

        def __call__(self, source: str, target: str) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(28, "No space left on device")
            real(source, target)

    while True:
        output = tmp_path / f"set-{failures}"
        if draws > 1:
            shutil.copytree(tmp_path / "before", output)
        monkeypatch.setattr(os, "replace", Failing(failures))
        try:
            run(world, output, draws=draws, **few)
        except (OSError, UserError):
            monkeypatch.setattr(os, "replace", real)
            run(world, output, draws=draws, **few)
        else:
            break
        assert published(output) == expected, f"rename {failures}"
        failures += stride

    assert failures > 8
