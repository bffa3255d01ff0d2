"""Real processes, really killed: the same command finishes what is left, byte for byte."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from datasets import shards
from datasets.verify import problems
from infra.storage import sha256
from tests.conftest import picture, program

IMAGES = 24
PATIENCE = 120.0


def arguments(source: Path, output: Path) -> list[str | Path]:
    """Return a job of about a hundred samples in two dozen shards."""
    job: list[str | Path] = ["--input", source, "--output", output, "--size", "64"]
    job += ["--stride", "48", "--threshold", "200", "--samples-per-shard", "16"]
    return [*job, "--val-fraction", "0.2", "--workers", "2", "--no-track"]


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
    """Count what is durable: score tables and finished shards."""
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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Run the job once in peace; returns its source and digests."""
    folder = tmp_path_factory.mktemp("undisturbed")
    source = folder / "raw"
    source.mkdir()
    for number in range(IMAGES):
        picture(number, 260 + 8 * number, 200).save(source / f"photo-{number:02d}.png")
    finish(source, folder / "set", folder)
    return source, digests(folder / "set")


def test_killed_at_many_moments_the_job_ends_as_if_undisturbed(
    undisturbed: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """SIGKILL the driver, again and again, at moments spread over scoring and packing."""
    source, expected = undisturbed
    output = tmp_path / "set"
    moments = random.Random(2026)
    kills = 0
    for _ in range(6):
        process = program("pipelines.curate", arguments(source, output), tmp_path)
        if not wait_for(output, progress(output) + moments.randint(1, 14), process):
            break
        time.sleep(moments.random() * 0.05)
        process.kill()
        process.communicate()
        kills += 1
        assert shards.read_manifest(output) is None or digests(output) == expected
    finish(source, output, tmp_path)

    assert kills >= 3
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
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any("MapWorker" in part for part in child.cmdline())
    ]
    assert workers
    os.kill(workers[0].pid, signal.SIGKILL)
    out, errors = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0, out + errors
    assert digests(output) == expected
