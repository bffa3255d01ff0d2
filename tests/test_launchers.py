"""Whoever starts a training and however it is told to end: it saves, and leaves no process behind.

The trainings are those with most processes: two ranks, each with loader processes. The one that is
not slow has one rank: its launcher and processes import for as long as all else takes.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, ROOT, environment, free_port
from tests.support.processes import descendants, is_running, wait_for_end
from tests.support.training_sets import SMOKE, write_image_set
from trainers.loop.integrity import MANIFEST

BIN = Path(sys.executable).parent
PROGRAM = "trainers/predictor.py"
LAUNCHERS = {
    "alone": [sys.executable, PROGRAM],
    "deepspeed": [BIN / "deepspeed", "--num_accelerators", "2", PROGRAM],
    "deepspeed, one rank": [BIN / "deepspeed", "--num_accelerators", "1", PROGRAM],
    "torchrun": [BIN / "torchrun", "--standalone", "--nproc-per-node", "2", PROGRAM],
}
OPTIONS = [
    "--workers",
    "1",
    "--max-steps",
    "1000000",
    "--log-every",
    "1",
    "--save-every",
    "1000000",
    "--validate-every",
    "0",
    "--no-track",
]
slow = pytest.mark.slow
KILLED, TERMINATED = signal.SIGKILL, signal.SIGTERM


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image set."""
    return write_image_set(tmp_path_factory.mktemp("images") / "set", size=32)


def wait_for_step(log: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until the second step is logged."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and '"step": 2,' in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"no second step: {process.communicate()}")


@pytest.mark.parametrize(
    ("launcher", "told", "number", "code"),
    [
        ("deepspeed, one rank", "first", TERMINATED, -TERMINATED),
        pytest.param("deepspeed", "first", TERMINATED, -TERMINATED, marks=slow),
        pytest.param("deepspeed", "all", TERMINATED, -TERMINATED, marks=slow),
        pytest.param("deepspeed", "all", signal.SIGINT, -signal.SIGINT, marks=slow),
        pytest.param("deepspeed", "second", KILLED, 0, marks=slow),
        pytest.param("torchrun", "first", TERMINATED, 1, marks=slow),
        pytest.param("torchrun", "all", signal.SIGHUP, 1, marks=slow),
        pytest.param("torchrun", "first", KILLED, -KILLED, marks=slow),
        pytest.param("alone", "first", TERMINATED, 143, marks=slow),
        pytest.param("alone", "all", TERMINATED, 143, marks=slow),
        pytest.param("alone", "all", signal.SIGINT, 130, marks=slow),
        pytest.param("alone", "first", KILLED, -KILLED, marks=slow),
    ],
)
def test_told_to_end_it_saves_and_nothing_is_left(
    images: Path, tmp_path: Path, launcher: str, told: str, number: signal.Signals, code: int
) -> None:
    """Told is the first process, its child, or each process of the group, as by a scheduler.

    SIGKILL of the only rank saves nothing, of a launcher it is as SIGTERM to the ranks.
    """
    output = tmp_path / "run"
    options = [*SMOKE, *OPTIONS, "--images", images, "--output", output]
    command = [*LAUNCHERS[launcher], *options]
    if launcher.startswith("deepspeed"):
        command[1:1] = ["--master_port", str(free_port())]
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env={**environment(tmp_path), "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    family: list[int] = []
    try:
        wait_for_step(output / "log.jsonl", process)
        family = descendants(process.pid)
        match told:
            case "first":
                process.send_signal(number)
            case "second":
                os.kill(family[0], number)
            case "all":
                os.killpg(process.pid, number)
        said, _ = process.communicate(timeout=PATIENCE)
        left = wait_for_end(family)
    finally:
        for pid in [process.pid, *family]:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
    saved = list((output / "checkpoints").glob(f"step-*/{MANIFEST}"))

    assert not left
    assert len(saved) == (0 if (launcher, number) == ("alone", KILLED) else 1), said[-3000:]
    assert process.returncode == code
