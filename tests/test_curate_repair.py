"""Mending a curated set: exactly what is damaged is made again, from the inputs, byte for byte."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from datasets import shards
from datasets.verify import problems
from infra.errors import UserError
from pipelines.curate import __main__ as curate
from pipelines.curate import scoring
from pipelines.curate.job import Curation
from tests.conftest import picture
from tests.support.curation_jobs import InProcess, config, published, run
from tests.support.damage import flip, truncate
from tests.support.encoding_jobs import Stopping

FIELDS = {"threshold": 200.0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Curate a small set once; beside it lie its photographs."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "raw").mkdir()
    for number in range(6):
        picture(number, 160, 128).save(folder / "raw" / f"photo-{number}.png")
    run(folder / "raw", folder / "set", **FIELDS)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """Return a folder with a copy of the set and its photographs, with the times they had."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def repair(folder: Path) -> tuple[list[str], InProcess]:
    """Repair the set in this process; returns the names of what was mended."""
    engine = InProcess()
    return Curation(config(folder / "raw", folder / "set", **FIELDS)).repair(engine), engine


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize(
    "name",
    [
        *("train-000000.tar", "val-000000.tar", "manifest.json"),
        *("index.parquet", "scores.parquet", "ignored.parquet"),
    ],
)
def test_what_is_damaged_is_made_again_and_nothing_else(
    copy: Path, name: str, damage: Callable[[Path], object]
) -> None:
    """A flipped bit, half a file or none: the bytes come back, and no other file is written."""
    before = published(copy / "set")
    times = {path.name: path.stat().st_mtime_ns for path in (copy / "set").iterdir()}
    damage(copy / "set" / name)
    names, engine = repair(copy)

    assert names == [name]
    assert [unit["name"] for _, unit in engine.units] == [name] * name.endswith(".tar")
    assert published(copy / "set") == before
    assert list(problems(copy / "set")) == []
    for path in (copy / "set").iterdir():
        assert path.name in (name, ".curate") or path.stat().st_mtime_ns == times[path.name]


def test_the_command_mends_and_says_what(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`verify --repair` names what it made again, and then finds nothing wrong."""
    flip(copy / "set" / "index.parquet")

    assert curate.main(["verify", str(copy / "set")]) == 1
    capsys.readouterr()
    assert curate.main(["verify", str(copy / "set"), "--repair"]) == 0
    assert "index.parquet: made again" in capsys.readouterr().out
    assert curate.main(["verify", str(copy / "set"), "--repair"]) == 0


def test_a_shard_that_would_come_out_differently_is_refused(copy: Path) -> None:
    """Where a photograph has changed, the message names it, and the damaged file stays."""
    for number in range(6):
        picture(90 + number, 160, 128).save(copy / "raw" / f"photo-{number}.png")
    flip(copy / "set" / "train-000000.tar")
    before = (copy / "set" / "train-000000.tar").read_bytes()

    with pytest.raises(UserError, match=r"photo-\d.*has changed since it was scored"):
        repair(copy)
    assert (copy / "set" / "train-000000.tar").read_bytes() == before


def test_the_same_command_makes_what_is_lost(copy: Path) -> None:
    """A rerun notices a lost or shortened file, and packs only that one."""
    before = published(copy / "set")
    (copy / "set" / "train-000001.tar").unlink()
    truncate(copy / "set" / "scores.parquet")
    again = run(copy / "raw", copy / "set", **FIELDS)

    assert [unit["name"] for _, unit in again.units] == ["train-000001.tar"]
    assert published(copy / "set") == before


def test_overwrite_starts_over_and_is_resumed(copy: Path) -> None:
    """With the same configuration everything is made anew, once, also if the job is killed."""
    before = published(copy / "set")
    flip(copy / "set" / "train-000000.tar")
    again = config(copy / "raw", copy / "set", overwrite=True, **FIELDS)
    with pytest.raises(KeyboardInterrupt):
        Curation(again).run(Stopping(8))
    assert shards.read_manifest(copy / "set") is not None
    engine = InProcess()
    Curation(again).run(engine)

    assert engine.count("score") == 0
    assert 0 < engine.count("pack") < len(list((copy / "set").glob("*.tar")))
    assert published(copy / "set") == before
    engine = InProcess()
    Curation(again).run(engine)
    assert engine.count("score") == 6


def test_keys_that_an_earlier_version_took_stay_in_their_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set goes on, is cut again, verified and repaired with them; new ones are dropped."""
    source, folder = tmp_path / "raw", tmp_path / "set"
    source.mkdir()
    old, new = "x" * 80, "y" * 80
    for number, key in enumerate((old, "short")):
        picture(number, 128, 96).save(source / f"{key}.png")
    with monkeypatch.context() as earlier:
        earlier.setattr(scoring, "is_storable", lambda key, _: shards.fits_ustar(f"{key}.json"))
        run(source, folder)
    before = published(folder)
    assert run(source, folder).units == []

    for path in source.iterdir():
        os.utime(path, ns=(1, 1))
    run(source, folder)
    assert published(folder) == before

    for name in ("scores.parquet", "train-000000.tar"):
        flip(folder / name)
    assert set(Curation(config(source, folder)).repair(InProcess())) == {
        *("scores.parquet", "train-000000.tar")
    }
    assert published(folder) == before

    picture(2, 128, 96).save(source / f"{new}.png")
    run(source, folder, samples_per_shard=2, max_bad=1)
    rows = pq.read_table(folder / "scores.parquet").to_pylist()
    assert {row["source"] for row in rows if row["shard"]} == {old, "short"}
    assert {row["key"] for row in rows if row["drop_reason"] == "key_too_long"} == {new}
    assert list(problems(folder)) == []
