"""A run that was killed, stopped or broken goes on as if nothing had been."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.config import digest, pretty_json
from infra.storage import write_bytes
from infra.termination import TERMINATED
from models.checkpoint import load_checkpoint
from tests.conftest import PATIENCE, ROOT, environment
from tests.support.processes import is_running
from tests.support.training_sets import (
    SMOKE,
    log,
    run_trainer,
    same_curve,
    start_ranks,
    start_trainer,
    write_latent_set,
)
from trainers.loop.checkpoints import Checkpoints, step_of
from trainers.loop.integrity import MANIFEST, seal
from trainers.loop.stores import METRICS, LocalStore

STEPS = 16
TINY = ["trainers.flow", *SMOKE, "--workers", "1"]
RUN = ["--max-steps", str(STEPS), "--log-every", "1", "--validate-every", "8", "--save-every", "4"]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small latent set."""
    return write_latent_set(tmp_path_factory.mktemp("latents") / "set")


@pytest.fixture(scope="module")
def undisturbed(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from the first step to the last."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    run_trainer([*TINY, *RUN, "--latents", latents], output)
    return output


def start(arguments: list[str | Path], output: Path) -> "subprocess.Popen[str]":
    """Start a trainer as a user does, or a launcher's module."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments), "--output", str(output), "--no-track"],
        cwd=ROOT,
        env=environment(output.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def signalled(name: str, event: str, arguments: list[str | Path]) -> list[str | Path]:
    """Have a trainer receive a signal just before an event, for which see the module run here."""
    number, _, pattern = event.partition(" ")
    return ["tests.support.signalled", name, number, pattern, *arguments]


def wait_for(output: Path, step: int, pid: int) -> None:
    """Wait until a step is in the log."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and is_running(pid):
        lines = (output / "log.jsonl").read_text() if (output / "log.jsonl").exists() else ""
        if f'"step": {step},' in lines:
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


def last(output: Path) -> dict[str, torch.Tensor]:
    """Return all weights of the last checkpoint, raw and averaged."""
    folder = output / "checkpoints" / f"step-{STEPS:08d}"
    weights = {}
    for name in ("model", "ema-0.99"):
        tensors = load_checkpoint(folder / name)[1]
        weights |= {f"{name}/{key}": value for key, value in tensors.items()}
    return weights


def without_its_end(undisturbed: Path, folder: Path) -> Path:
    """Copy a run as if it had ended after its checkpoint of step 12; returns the copy."""
    shutil.copytree(undisturbed, folder)
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:08d}")
    return folder


def losses(output: Path) -> list[float]:
    """Return the training loss of every step."""
    return [line["train/loss"] for line in log(output) if "train/loss" in line]


def assert_same_run(output: Path, expected: Path) -> None:
    """Assert that two runs are one, to the bit: every number logged, and every weight."""
    assert log(output) == log(expected)
    mine, other = last(output), last(expected)
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_killed_and_resumed_is_undisturbed_to_the_bit(
    latents: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """SIGKILL while a checkpoint is saved, rated or deleted: the newest whole one counts.

    The same command goes on from there, and logs nothing twice.
    """
    kills = {  # just before this: the newest complete step afterwards
        "1 open *step-00000004/model/*": None,
        "1 os.rename *step-00000008/.manifest*": 4,
        '1 os.write */log.jsonl {"step": 8,*val/*': 8,
        "1 os.rename *step-00000008/.metrics*": 8,
        "1 os.remove *step-00000008/manifest.json": 12,
        "1 shutil.rmtree *step-00000008": STEPS,
    }
    output = tmp_path / "run"
    arguments = [*TINY, *RUN, "--keep-last", "1", "--keep-best", "0", "--latents", latents]
    for event, newest in kills.items():
        process = start_trainer(signalled("SIGKILL", event, arguments), output)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"{event}: {errors[-2000:]}"
        found = _checkpoints(output).find("auto")
        assert (found.step if found else None) == newest, event
    said = run_trainer(arguments, output)

    assert "resumed from" in said
    assert "to the bit" in said
    assert_same_run(output, undisturbed)
    assert [path.name for path in (output / "checkpoints").iterdir()] == [f"step-{STEPS:08d}"]


@pytest.mark.slow
def test_killed_at_random_moments(latents: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Kills at any moment, saves included, until it gets through."""
    rng = np.random.default_rng(0)
    for _ in range(12):
        process = start([*TINY, *RUN, "--latents", latents], tmp_path / "run")
        try:
            process.wait(timeout=float(rng.uniform(5, 9)))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
    run_trainer([*TINY, *RUN, "--latents", latents], tmp_path / "run")

    assert_same_run(tmp_path / "run", undisturbed)


def test_sigterm_saves_and_ends_then_resumes(
    latents: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """It ends after the step it is in, with a checkpoint and the code of a stopped program."""
    arguments = [*TINY, *RUN, "--latents", latents]
    event = '1 os.write */log.jsonl {"step": 3,*'
    told = signalled("SIGTERM", event, [*arguments, "--save-every", "1000"])
    process = start_trainer(told, tmp_path / "run")
    output, errors = process.communicate()

    assert process.returncode == TERMINATED, errors
    assert "saved" in output
    assert list(map(step_of, _checkpoints(tmp_path / "run").complete())) == [4]
    run_trainer(arguments, tmp_path / "run")
    assert_same_run(tmp_path / "run", undisturbed)


def test_resumed_on_two_ranks_within_rounding(
    latents: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Half of the run on one rank, the rest on two at ZeRO 3: the curve within 1e-4."""
    folder = without_its_end(undisturbed, tmp_path / "run")
    arguments = [*TINY, *RUN, "--zero-stage", "3", "--latents", latents]
    processes = start_ranks([arguments] * 2, folder)
    (output, errors), _ = (process.communicate() for process in processes)

    assert [process.returncode for process in processes] == [0, 0], errors[-3000:]
    assert "up to rounding, from another layout" in output
    assert "FutureWarning" not in errors
    same_curve(log(folder), log(undisturbed), rel=1e-4)


def test_a_full_disk_at_a_save_leaves_the_last_good_checkpoint(
    latents: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The run ends with a message, and goes on from before once there is room."""
    folder = without_its_end(undisturbed, tmp_path / "run")
    before = _checkpoints(folder).complete()
    arguments = [*TINY, *RUN, "--latents", latents]
    size = max(path.stat().st_size for path in folder.rglob("*.safetensors"))
    process = start_trainer(["tests.support.limited", str(size // 2), *arguments], folder)
    _, errors = process.communicate()

    assert process.returncode == 1
    assert "could not be saved" in errors
    assert _checkpoints(folder).complete() == before
    assert step_of(before[-1]) == 12
    assert not (folder / "checkpoints" / f"step-{STEPS:08d}").exists()
    run_trainer(arguments, folder)
    assert losses(folder) == losses(undisturbed)
    mine, expected = last(folder), last(undisturbed)
    assert all(torch.equal(mine[name], expected[name]) for name in expected)


def test_a_second_process_in_the_same_folder_is_refused(latents: Path, tmp_path: Path) -> None:
    """Two runs never write one checkpoint."""
    arguments = [*TINY, "--max-steps", "100000", "--latents", latents]
    first = start_trainer([*arguments, "--log-every", "1"], tmp_path / "run")
    wait_for(tmp_path / "run", 1, first.pid)
    second = start_trainer(arguments, tmp_path / "run")
    _, errors = second.communicate()
    first.kill()
    first.communicate()

    assert second.returncode == 1
    assert "another process" in errors


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_job(latents: Path, tmp_path: Path) -> None:
    """The others do not wait for it longer than they were told to."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    options = ["--timeout-minutes", "0.1", "--max-steps", "100000", "--log-every", "1"]
    process = start([*launcher, *TINY, *options, "--latents", latents], tmp_path / "run")
    wait_for(tmp_path / "run", 2, process.pid)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(ranks[1]), signal.SIGSTOP)
    try:
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            process.kill()
            for number in ranks:
                os.kill(int(number), signal.SIGKILL)

    assert process.returncode != 0
    assert "took longer than --timeout-minutes 0.1" in errors
    assert "trainers/loop/run.py" in errors  # where it hung


def _checkpoints(folder: Path, keep_last: int = 2, keep_best: int = 1) -> Checkpoints:
    return Checkpoints(
        LocalStore(folder / "checkpoints"), keep_last=keep_last, keep_best=keep_best, best="-loss"
    )


def _write(folder: Path, step: int, loss: float | None = None) -> Path:
    """Write what a checkpoint is to the one who looks for it."""
    path = folder / "checkpoints" / f"step-{step:08d}"
    record = pretty_json({"step": step})
    write_bytes(path / "record.json", record)
    assert seal(path) == ""
    if loss is not None:
        saved = {"metrics": {"loss": loss}, "sha256": digest({"loss": loss})}
        write_bytes(path / METRICS, pretty_json(saved))
    return path


def test_the_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    """One without a manifest, or with a file cut short, does not count."""
    checkpoints = _checkpoints(tmp_path)
    assert checkpoints.find("auto") is None
    _write(tmp_path, 10)
    (_write(tmp_path, 20) / MANIFEST).unlink()
    (_write(tmp_path, 30) / "record.json").write_bytes(b"{")
    found = checkpoints.find("auto")

    assert found is not None
    assert found.step == 10
    assert checkpoints.find(str(found.folder)) == found
    with pytest.raises(Exception, match="no complete checkpoint"):
        checkpoints.find(str(tmp_path / "checkpoints" / "step-00000020"))
    with pytest.raises(Exception, match="--resume never"):
        checkpoints.find("never")


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    """And what killed saves left is cleared away."""
    for step, loss in ((10, 0.5), (20, 0.1), (30, 0.3), (40, None), (50, None)):
        _write(tmp_path, step, loss)
    (_write(tmp_path, 60) / MANIFEST).unlink()
    _checkpoints(tmp_path).prune()

    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000020", "step-00000040", "step-00000050"]
