"""Real processes, really killed: the same command finishes what is left, byte for byte."""

import contextlib
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from datasets import shards
from datasets.verify import problems
from infra.storage import sha256
from tests.conftest import PATIENCE, picture, program
from tests.support.curation_jobs import run

IMAGES = 24
FILES = 24 + 45  # score tables and shards that the job makes
SAMPLING = {"size": 64, "stride": 48, "samples_per_shard": 16}
KEPT = {"scorer": "brisque", "threshold": 200.0, "val_fraction": 0.2}


def arguments(source: Path, output: Path) -> list[str | Path]:
    """Return a job of 24 images and 720 samples, in 45 shards."""
    job: list[str | Path] = ["--input", source, "--output", output, "--workers", "2", "--no-track"]
    for name, value in (SAMPLING | KEPT).items():
        job += [f"--{name.replace('_', '-')}", str(value)]
    return job


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that makes the set."""
    manifest = shards.read_manifest(folder)
    assert manifest is not None
    names = [entry["name"] for entry in manifest["shards"]] + list(manifest["files"])
    return {name: sha256(folder / name) for name in [*names, shards.MANIFEST]}


def finish(source: Path, output: Path, logs: Path) -> None:
    """Run the job to its end; it must succeed."""
    process = program("pipelines.curate", arguments(source, output), logs)
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + errors


def progress(output: Path) -> int:
    """Count what is durable: score tables and finished shards, at the end `FILES`."""
    state = output / ".curate"
    return sum(1 for _ in state.glob("scores-*/part-*")) + sum(
        1 for _ in state.glob("cut-*/*.done.json")
    )


def wait_for(output: Path, count: int, process: "subprocess.Popen[str]") -> bool:
    """Wait until ``count`` files are durable; False if the process ended before."""
    deadline = time.monotonic() + PATIENCE
    while progress(output) < count:
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the job does not advance"
        time.sleep(0.005)
    return True


def workers(process: "subprocess.Popen[str]") -> Iterator[psutil.Process]:
    """Yield Ray's workers of a job, as far as they still live."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("MapWorker" in part for part in child.cmdline()):
                yield child


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Do the job once in peace; returns its source and digests.

    It is one process's work, without Ray: that makes no difference either.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    source = folder / "raw"
    source.mkdir()
    for number in range(IMAGES):
        picture(number, 260 + 8 * number, 200).save(source / f"photo-{number:02d}.png")
    run(source, folder / "set", **SAMPLING, **KEPT)
    return source, digests(folder / "set")


@pytest.mark.parametrize("kills", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_at_many_moments_the_job_ends_as_if_undisturbed(
    undisturbed: tuple[Path, dict[str, str]], tmp_path: Path, kills: int
) -> None:
    """SIGKILL the driver, again and again, at moments spread over scoring and packing."""
    source, expected = undisturbed
    output = tmp_path / "set"
    moments, struck = random.Random(2026), 0
    for _ in range(kills):
        done = progress(output)
        process = program("pipelines.curate", arguments(source, output), tmp_path)
        if not wait_for(output, done + moments.randint(1, max(1, (FILES - done) // 2)), process):
            break
        time.sleep(moments.random() * 0.05)
        process.kill()
        process.communicate()
        struck += 1
        assert shards.read_manifest(output) is None or digests(output) == expected
    finish(source, output, tmp_path)

    assert struck >= 3
    assert digests(output) == expected
    assert list(problems(output)) == []
    assert not list(output.rglob("*.partial"))


def test_a_worker_killed_in_mid_flight_changes_nothing(
    undisturbed: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """Ray starts another worker and does the unit again; the set has every sample once."""
    source, expected = undisturbed
    output = tmp_path / "set"
    process = program("pipelines.curate", arguments(source, output), tmp_path)
    assert wait_for(output, 2, process)
    next(workers(process)).kill()
    out, errors = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0, out + errors
    assert digests(output) == expected
