"""Trainers in the test's own process, which saves the six seconds that each start takes."""

import contextlib
import faulthandler
import importlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from tests.support.training_sets import SMOKE, write_latent_set
from trainers.loop import engine, run

TINY = ["trainers.flow", *SMOKE, "--workers", "0"]
RUN = ["--max-steps", "8", "--log-every", "1", "--validate-every", "4", "--save-every", "4"]


@dataclass
class Ended:
    """How a program ended, as `infra.cli.run` would have it, and what it said."""

    code: int
    said: str


Train = Callable[[Sequence[str | Path], str | Path], Ended]


@pytest.fixture(scope="session")
def train() -> Iterator[Train]:
    """Run `[MODULE, OPTIONS...]` with an output folder, untracked.

    DeepSpeed keeps the first process group that it saw, so that all runs of a process share one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "leave", lambda: None)
        patch.setattr(run, "leave_refused", lambda *_: None)
        for name, value in (("DS_ACCELERATOR", "cpu"), ("LOCAL_RANK", "0")):  # as `join` sets them
            patch.setenv(name, value)
        patch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
        yield _train
    engine.leave()


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """Train a tiny flow for eight steps."""
    latents = write_latent_set(tmp_path_factory.mktemp("latents") / "set")
    return [*TINY, *RUN, "--latents", latents]


@pytest.fixture(scope="session")
def finished(
    command: list[str | Path], train: Train, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of eight steps with checkpoints at 4 and 8; tests copy it."""
    output = tmp_path_factory.mktemp("finished") / "run"
    ended = train(command, output)
    assert ended.code == 0, ended.said
    return output


@pytest.fixture
def eight(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def _train(command: Sequence[str | Path], output: str | Path) -> Ended:
    torch.set_num_threads(1)  # as tests of encode leave it: sums of more threads have other bits
    module, *options = map(str, command)
    tracked = [] if "--track" in options else ["--no-track"]
    main = importlib.import_module(module).main
    with (
        tempfile.TemporaryFile("w+") as said,  # a real one, for faulthandler
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            code = main([*options, *tracked, "--output", str(output)])
        except UserError as error:
            code = error.exit_code
            said.write(f"error: {error}\n")
        finally:
            faulthandler.cancel_dump_traceback_later()
        said.seek(0)
        return Ended(code, said.read())
