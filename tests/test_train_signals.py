"""A trainer that is told to end or to save does so within a step, and a resumed run is the same."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from infra.tracking.run import Run
from models.checkpoint import load_checkpoint
from tests.conftest import ROOT
from tests.support.training_sets import assert_equal, log
from trainers.loop.run import Training
from trainers.loop.stores import METRICS
from trainers.loop.watchdog import Watchdog

if TYPE_CHECKING:
    from tests.support.trainers_here import Train

pytest_plugins = ["tests.support.trainers_here"]
Tell = Callable[[int, int], None]


pytestmark = pytest.mark.usefixtures("signals_by_default")


@pytest.fixture(scope="module")
def command(command: list[str | Path]) -> list[str | Path]:
    """Train a tiny flow for six steps; validate at 0, 3 and 6."""
    return [*command, "--max-steps", "6", "--validate-every", "3", "--save-every", "100"]


@pytest.fixture(scope="module")
def undisturbed(
    command: list[str | Path], train: "Train", tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that nobody told anything."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(command, output).code == 0
    return output


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Have this process sent a signal once, when the training's numbers of a step are logged."""

    def told(number: int, step: int) -> None:
        original, left = Run.log_metrics, [number]

        def log_metrics(self: Run, values: dict[str, float], at: int | None = None) -> None:
            original(self, values, at)
            if at == step and "train/loss" in values and left:
                os.kill(os.getpid(), left.pop())

        monkeypatch.setattr(Run, "log_metrics", log_metrics)

    return told


def saved(output: Path) -> list[int]:
    """List the steps that have a checkpoint."""
    return sorted(int(path.name[5:]) for path in (output / "checkpoints").glob("step-*"))


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Read the last weights."""
    return load_checkpoint(output / "checkpoints" / "step-00000006" / "model")[1]


def assert_same(output: Path, expected: Path) -> None:
    """Assert that two runs have the same log, pictures aside, and end with the same weights."""
    assert log(output) == log(expected)
    assert_equal(weights(output), weights(expected))


@pytest.mark.parametrize(
    ("number", "options", "step", "at", "code"),
    [
        (signal.SIGTERM, [], 1, 2, 143),
        (signal.SIGHUP, [], 2, 3, 143),  # when a validation is due, which then waits
        (signal.SIGINT, [], 3, 3, 130),  # in the validation, which is left
        (signal.SIGUSR1, ["--on-usr1", "end"], 3, 3, 143),
        (signal.SIGTERM, [], 5, 6, 143),  # at the last step: the run is finished by the next start
    ],
)
def test_it_saves_ends_and_is_resumed_to_the_bit(
    command: Sequence[str | Path],
    train: "Train",
    undisturbed: Path,
    tmp_path: Path,
    tell: Tell,
    *,
    number: int,
    options: list[str],
    step: int,
    at: int,
    code: int,
) -> None:
    """Within one step and without the validation, which the next start makes up for."""
    output = tmp_path / "run"
    tell(number, step)
    ended = train([*command, *options], output)

    assert ended.code == code
    assert saved(output) == [at]
    assert f"told to end by {signal.Signals(number).name}" in ended.said
    assert not [line for line in log(output) if line["step"] == at and "val/loss" in line]
    assert not (output / "network").exists()
    assert train(command, output).code == 0
    assert_same(output, undisturbed)


def test_usr1_saves_and_the_run_goes_on(
    command: Sequence[str | Path], train: "Train", undisturbed: Path, tmp_path: Path, tell: Tell
) -> None:
    """After the step; and in a validation at once, if its step has no checkpoint so far."""
    output = tmp_path / "run"
    tell(signal.SIGUSR1, 1)
    tell(signal.SIGUSR1, 3)
    ended = train([*command, "--keep-last", "9"], output)

    assert ended.code == 0
    assert saved(output) == [2, 3, 6]
    assert (output / "checkpoints" / "step-00000003" / METRICS).exists()
    assert_same(output, undisturbed)


def test_a_checkpoint_does_not_wait_for_the_validation_of_its_step(
    command: Sequence[str | Path], train: "Train", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets the metrics afterwards, and the best is kept by them."""
    output, seen = tmp_path / "run", list[list[int]]()
    validate = Training.validate

    def watched(self: Training, tracked: Run) -> None:
        seen.append(saved(output))
        validate(self, tracked)

    monkeypatch.setattr(Training, "validate", watched)
    options = ["--save-every", "1", "--validate-every", "2", "--keep-last", "1"]
    ended = train([*command, *options], output)
    losses = {line["step"]: line["val/loss"] for line in log(output) if "val/loss" in line}
    best = min((step for step in losses if step), key=lambda step: losses[step])

    assert ended.code == 0
    assert [steps[-1:] for steps in seen] == [[], [2], [4], [6]]
    assert saved(output) == sorted({best, 6})


def test_a_hang_is_one_of_a_batch_not_of_a_whole_validation(
    command: Sequence[str | Path], train: "Train", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a validation is, each of its batches has the time that a step has."""
    armed: list[str] = []
    monkeypatch.setattr(Watchdog, "arm", lambda self, what: armed.append(what))
    train([*command, "--max-steps", "1"], tmp_path / "run")
    batch, saved = "batch {} of the validation of step {}, pairs,", ("the save", "the upload")
    save = [f"{what} of step 1" for what in saved]

    assert armed == [batch.format(1, 0), "step 0", *save, batch.format(1, 1)]


def test_the_watchdog_names_the_option_and_the_place() -> None:
    """What hung, what may be changed, and where every thread was."""
    program = (
        "import threading\n"
        "from trainers.loop.watchdog import Watchdog\n"
        "def hanging(): threading.Event().wait()\n"
        "with Watchdog(0.001) as watchdog:\n"
        "    watchdog.arm('step 7')\n"
        "    hanging()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 1
    assert "error: step 7 took longer than --timeout-minutes 0.001" in ended.stderr
    assert "in hanging" in ended.stderr


def test_without_validation_there_is_none_at_the_end_either(
    command: Sequence[str | Path], train: "Train", undisturbed: Path, tmp_path: Path
) -> None:
    """And the run is the same but for that."""
    ended = train([*command, "--validate-every", "0"], tmp_path / "run")
    expected = [line for line in log(undisturbed) if "val/loss" not in line]

    assert ended.code == 0
    assert log(tmp_path / "run") == expected


def test_a_validation_is_printed_to_be_read(
    command: Sequence[str | Path], train: "Train", tmp_path: Path
) -> None:
    """A line for each metric, with its better side; the one that keeps the best is marked."""
    ended = train([*command, "--max-steps", "1"], tmp_path / "run")
    said: Any = ended.said.splitlines()
    first = said.index("step 0: validation; * keeps the best checkpoints")
    name, mark, value, better, *rest = said[first + 2].replace(",", "").split()
    (line, *_) = log(tmp_path / "run")

    assert said[first + 1].split() == ["value", "better"]
    assert (name, mark, better) == ("loss", "*", "lower")
    assert float(value) == pytest.approx(line["val/loss"], rel=1e-3)
    assert rest[::2] == ["t0.1", "t0.3", "t0.5", "t0.7", "t0.9"]
