"""A dry run of an evaluation checks what the run needs, says what it costs, and writes nothing."""

import re
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UsageError, UserError
from pipelines.evaluate.__main__ import main
from pipelines.evaluate.config import EvaluateConfig, MeasureConfig, SetsConfig
from pipelines.evaluate.estimate import estimate
from pipelines.evaluate.job import Evaluation
from pipelines.restore.config import ModelRule
from tests.conftest import picture
from tests.support.curation_jobs import InProcess
from tests.support.restore_jobs import made
from tests.support.tiny_bundle import write_faces


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures, and what a restorer may have made of them."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("hq", "restored"):
        write_faces(folder / name, 3, 16)
    return folder


def job(folder: Path, output: Path, **measure: Any) -> EvaluateConfig:
    """Return an evaluation by two metrics that need no weights."""
    given: dict[str, Any] = {"metrics": ("psnr", "ssim"), "device": "cpu", "track": False}
    return EvaluateConfig(
        output=str(output),
        sets=SetsConfig(
            restored=(f"a={folder / 'restored'}", f"b={folder / 'hq'}"),
            reference=str(folder / "hq"),
        ),
        measure=MeasureConfig(**{**given, "workers": 2, **measure}),
    )


def test_it_counts_what_is_left(world: Path, tmp_path: Path) -> None:
    """Before anything is measured all pictures; afterwards none, and with a further metric all."""
    output = tmp_path / "out"
    before = estimate(job(world, output))
    assert before.startswith("3 keys, 2 methods, 2 metrics of 2; 9 pictures of 3 keys are left")
    assert re.search(r"measured  \S+ s a key on one worker \(cpu\): \w+ \d+ %, \w+ \d+ %", before)
    assert "hours) with 2 workers" in before
    assert before.endswith("nothing was written\n")
    assert not output.exists()

    Evaluation(job(world, output)).run(InProcess())
    there = made(output)

    after = estimate(job(world, output))
    assert "0 pictures of 0 keys are left" in after
    assert "nothing: all is measured already" in after
    assert "; 9 pictures of 3 keys are left" in estimate(job(world, output, metrics=("colour",)))
    assert made(output) == there


def test_missing_weights_are_named(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A metric that cannot be had has its line, and does not end a dry run."""
    said = estimate(job(world, tmp_path / "out", metrics=("psnr", "lpips"), weights=str(tmp_path)))

    assert "1 metrics of 2" in said
    assert "alexnet" in capsys.readouterr().err


def test_what_the_run_would_refuse_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No partner, no method, a folder of something else, pictures of unequal sizes."""
    write_faces(tmp_path / "hq", 3, 16)
    write_faces(tmp_path / "restored", 3, 24)
    with pytest.raises(UserError, match="the first pictures cannot be measured"):
        estimate(job(tmp_path, tmp_path / "out"))
    assert "unequal_sizes\t--restored a face-0\t" in capsys.readouterr().err

    picture(9, 16, 16).save(tmp_path / "hq" / "face-9.png")
    with pytest.raises(UsageError, match=r"--restored a lacks 1: face-9"):
        estimate(job(tmp_path, tmp_path / "out"))
    with pytest.raises(UsageError, match="not empty and not an evaluation"):
        estimate(job(world, world / "hq"))
    with pytest.raises(UsageError, match="no --restored"):
        main(["--output", str(tmp_path / "out"), "--dry-run"])
    assert not (tmp_path / "out").exists()


def test_of_a_model_the_restoring_is_asked_elsewhere(tmp_path: Path) -> None:
    """What it would restore is not there to be measured."""
    config = EvaluateConfig(output=str(tmp_path), rule=ModelRule(model="bundle"), dry_run=True)
    with pytest.raises(UsageError, match=r"python -m pipelines\.restore --dry-run"):
        estimate(config)
