"""What a curation refuses, drops or survives: bad input, full disks, wrong commands."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from datasets import shards
from datasets.verify import problems
from infra import storage
from infra.errors import BudgetExceeded, UsageError, UserError
from pipelines.curate import __main__ as curate
from pipelines.curate.estimate import estimate
from tests.conftest import Pictures
from tests.support.curation_jobs import InProcess, config, published, run


def bad_files(source: Path) -> dict[str, str]:
    """Put one file of every kind of damage beside the pictures; returns {key: reason}."""
    good = (source / "photo-00.png").read_bytes()
    (source / "cut.png").write_bytes(good[: len(good) // 2])
    (source / "nothing.jpg").write_bytes(b"")
    (source / "text.jpg").write_text("<html>404</html>")
    (source / "misnamed.jpg").write_bytes(good)
    (source / ("x" * 70 + ".png")).write_bytes(good)
    return {
        "cut": "truncated",
        "nothing": "empty_file",
        "text": "not_an_image",
        "x" * 70: "key_too_long",
    }


def test_broken_images_are_recorded_and_the_run_goes_on(pictures: Pictures, tmp_path: Path) -> None:
    """Each has its reason; a wrong extension is no damage; past the budget the exit code is 3."""
    source = pictures(3)
    expected = bad_files(source)
    with pytest.raises(BudgetExceeded, match="4 of 8 images are broken") as caught:
        run(source, tmp_path / "set")
    rows = pq.read_table(tmp_path / "set" / "scores.parquet").to_pylist()
    found = {row["key"]: row["drop_reason"] for row in rows if row["index"] == 0}

    assert caught.value.exit_code == 3
    assert expected == found
    assert any(row["source"] == "misnamed" for row in rows)
    assert list(problems(tmp_path / "set")) == []

    run(source, tmp_path / "set", max_bad=0.5)


def test_a_bomb_is_dropped_undecoded(pictures: Pictures, tmp_path: Path) -> None:
    """The header's word is enough."""
    run(pictures(2), tmp_path / "set", max_pixels=160 * 128, max_bad=1)
    rows = pq.read_table(tmp_path / "set" / "scores.parquet").to_pylist()

    assert {r["source"] for r in rows if r["drop_reason"] == "too_many_pixels"} == {"photo-01"}


def test_another_configuration_is_refused_by_field_and_replaced_on_demand(
    pictures: Pictures, tmp_path: Path
) -> None:
    """What made the candidates cannot change under a set; --overwrite starts over."""
    source = pictures(4)
    run(source, tmp_path / "set")
    before = published(tmp_path / "set")
    with pytest.raises(UsageError, match=r"size: 64 -> 32.*stride: 48 -> 24.*--overwrite"):
        run(source, tmp_path / "set", size=32, stride=24)
    assert before == published(tmp_path / "set")
    run(source, tmp_path / "set", size=32, stride=24, overwrite=True)
    run(source, tmp_path / "fresh", size=32, stride=24)

    assert published(tmp_path / "set") == published(tmp_path / "fresh")


def test_a_folder_that_holds_something_else_is_refused(pictures: Pictures, tmp_path: Path) -> None:
    """Nobody's files are mixed with a set."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("chapter 1")

    with pytest.raises(UsageError, match="not empty and not a curated set"):
        run(pictures(1), tmp_path / "home")


def test_an_output_that_is_a_file_is_refused(pictures: Pictures, tmp_path: Path) -> None:
    """The message names the path."""
    (tmp_path / "file").write_text("x")

    with pytest.raises(UserError, match="file"):
        run(pictures(1), tmp_path / "file" / "set")


def test_two_jobs_do_not_share_a_folder(pictures: Pictures, tmp_path: Path) -> None:
    """The second is told to wait."""
    with (
        storage.exclusive(tmp_path / "set" / ".curate"),
        pytest.raises(UserError, match="being written by another process"),
    ):
        run(pictures(1), tmp_path / "set")


def test_keeping_nothing_is_an_error_that_says_why(pictures: Pictures, tmp_path: Path) -> None:
    """An empty set helps nobody; the reasons and the remedy are named."""
    with pytest.raises(UserError, match=r"no candidate was kept.*low_quality.*--threshold"):
        run(pictures(3), tmp_path / "set", threshold=-1000.0)


@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_no_write_that_fails_leaves_a_wrong_set(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    """Fail the n-th write, sync or rename: the next run gives the same bytes.

    For every 17th n by default, which meets all three kinds; for every n among the slow tests.
    """
    source = pictures(2)
    run(source, tmp_path / "undisturbed", samples_per_shard=8)
    expected = published(tmp_path / "undisturbed")
    failures = 0
    for n in range(0, 1000, stride):
        output = tmp_path / f"set{n}"
        disturbed = _FullDisk(n)
        with monkeypatch.context() as patch:
            patch.setattr(storage, "os", disturbed)
            try:
                run(source, output, samples_per_shard=8)
                break
            except (UserError, OSError):
                failures += 1
        left = [path for path in output.rglob("*") if path.name.endswith(".partial")]
        assert left == []
        manifest = shards.read_manifest(output)
        assert manifest is None or published(output) == expected
        run(source, output, samples_per_shard=8)
        assert published(output) == expected
        shutil.rmtree(output)

    assert failures > 30 // stride


class _FullDisk:
    """Stands for the module `os`: the n-th call that changes the disk finds it full."""

    def __init__(self, left: int) -> None:
        import os

        self._os = os
        self._left = left

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._os, name)
        return self._guarded(real) if name in ("write", "fsync", "replace") else real

    def _guarded(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        return call


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--preset", "nonesuch"], "nonesuch"),
        (["--preset", "lsdir", "--input", "x"], "no --output"),
        (["--output", "x", "--val-fraction", "1.5"], "val_fraction 1.5"),
        (["--output", "x", "--max-bad", "7"], "max_bad"),
        (["--config", "/nonexistent.json"], "nonexistent"),
        (["verify"], "usage"),
        (["export-scores", "x"], "usage"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mistake is named, with exit code 2, by us or by the command-line library."""
    with pytest.raises((UsageError, SystemExit)) as caught:
        curate.main(arguments)
    error = caught.value

    assert (error.exit_code if isinstance(error, UsageError) else error.code) == 2
    assert named in str(error) + capsys.readouterr().err


def test_a_saved_configuration_is_the_run(pictures: Pictures, tmp_path: Path) -> None:
    """--config of a finished set's config.json has nothing to do."""
    source = pictures(3)
    run(source, tmp_path / "set")
    saved = tmp_path / "set" / "config.json"

    assert curate.main(["--config", str(saved)]) == 0

    values = json.loads(saved.read_text())
    (tmp_path / "odd.json").write_text(json.dumps(values | {"treshold": 3}))
    with pytest.raises(UsageError, match="treshold"):
        curate.main(["--config", str(tmp_path / "odd.json")])


def test_the_dry_run_writes_nothing(pictures: Pictures, tmp_path: Path) -> None:
    """It says images, patches, bytes and minutes; of a few images, what the job itself counts."""
    source = pictures(6)
    (source / "cut.png").write_bytes((source / "photo-00.png").read_bytes()[:400])
    engine = InProcess()
    said = estimate(config(source, tmp_path / "set", threshold=45.0), engine)

    assert not (tmp_path / "set").exists()
    assert "7 images" in said
    for word in ("GB", "minutes", "seconds of it to start and end Ray"):
        assert word in said
    with pytest.raises(BudgetExceeded):
        run(source, tmp_path / "set", threshold=45.0)
    totals = pq.read_table(tmp_path / "set" / "scores.parquet").to_pylist()
    patches = sum(row["index"] > 0 for row in totals)
    kept = sum(row["shard"] is not None for row in totals)
    found = {word: float(number) for word, number in re.findall(r"(\w+) +about ([\d,]+)", said)}
    assert found["patches"] == patches
    assert found["kept"] == pytest.approx(kept, rel=0.25)
