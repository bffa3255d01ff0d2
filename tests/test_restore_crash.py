"""Real processes, really killed while they restore: the same command ends as if undisturbed."""

import signal
import time
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, program
from tests.support.preloaded import Preloaded
from tests.support.restore_jobs import made, pictures, restore
from tests.support.tiny_bundle import write_faces, write_tiny_bundle

FACES = 12
KILLS = (  # before which write the job is killed, one after the other
    "1 os.rename *face-*.png*",
    "2 os.rename *face-*.json*",
    "3 os.rename *face-*.sample-1.png*",
    "2 os.remove */attempts/*",
    "1 os.rename *results.parquet*",
    "1 os.rename *report.html*",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model and faces, and restore them once in peace, in this process."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny_bundle(folder / "model", alignment="any")
    write_faces(folder / "lq", FACES)
    restore(folder / "lq", folder / "whole", folder / "model", samples=2)
    return folder


def arguments(world: Path, output: Path) -> list[str | Path]:
    """Return the job's command line."""
    job: list[str | Path] = ["-i", world / "lq", "-o", output, "--model", world / "model"]
    return [*job, "--device", "cpu", "--workers", "2", "--samples", "2"]


def is_as(output: Path, world: Path) -> bool:
    """Tell whether an output is the undisturbed one; the page names its folder."""
    return {name: data for name, data in made(output).items() if name != "report.html"} == {
        name: data for name, data in made(world / "whole").items() if name != "report.html"
    }


@pytest.mark.slow
def test_killed_under_two_workers_of_ray_the_job_ends_as_if_undisturbed(
    world: Path, tmp_path: Path
) -> None:
    """SIGKILL the command when some pictures are there: these are whole, and the rest follows."""
    output = tmp_path / "out"
    process = program("pipelines.restore", arguments(world, output), tmp_path)
    deadline = time.monotonic() + PATIENCE
    while len(list(output.glob("face-*.json"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the job does not advance"
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert pictures(output).items() <= pictures(world / "whole").items()
    restore(world / "lq", output, world / "model", samples=2)

    assert is_as(output, world)


@pytest.mark.slow
def test_killed_at_every_kind_of_write_the_job_ends_as_if_undisturbed(
    world: Path, tmp_path: Path
) -> None:
    """SIGKILL the job while it writes pictures, results, tables and the page; then let it end."""
    output = tmp_path / "out"
    for event in KILLS:
        number, _, pattern = event.partition(" ")
        job = ["tests.support.without_ray", "restore", *map(str, arguments(world, output))]
        process = Preloaded("tests.support.signalled", ["SIGKILL", number, pattern, *job], tmp_path)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"{event}: {errors[-2000:]}"
        assert pictures(output).items() <= pictures(world / "whole").items()
    restore(world / "lq", output, world / "model", samples=2)

    assert is_as(output, world)
    assert not list(output.rglob("*.partial"))


def test_two_workers_of_ray_make_the_same_as_one_process(world: Path, tmp_path: Path) -> None:
    """To its end, with exit code 0 and what is said at the end."""
    process = program("pipelines.restore", arguments(world, tmp_path / "out"), tmp_path)
    out, errors = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0, out + errors
    assert out.startswith("latent-pmrf on CPUs\n")
    assert f"restored {FACES} of {FACES} pictures into" in out
    assert is_as(tmp_path / "out", world)
