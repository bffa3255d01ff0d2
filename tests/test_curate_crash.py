"""Real processes, really killed: the same command finishes what is left, byte for byte."""

import contextlib
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
from tests.conftest import PATIENCE, picture, program
from tests.support.curation_jobs import run
from tests.support.preloaded import Preloaded

IMAGES = 12
FILES = 12 + 20  # score tables and shards that the job makes
SAMPLING = {"size": 64, "stride": 48, "samples_per_shard": 16}
KILLS = (  # before which write the job is killed, one after the other
    "2 os.rename *scores-*part-*",
    "9 os.rename *scores-*part-*",
    "2 os.rename *cut-*.tar.*",
    "9 os.rename *cut-*.done.json*",
    "1 os.rename *cut-*manifest.json*",
    "2 os.rename */cut-*/*.tar",
    "1 os.rename */cut-*/manifest.json",
)
KEPT = {"scorer": "brisque", "threshold": 200.0, "val_fraction": 0.2}


def arguments(source: Path, output: Path) -> list[str | Path]:
    """Return a job of 12 images and 312 samples, in 20 shards."""
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


def worker_of(process: "subprocess.Popen[str]") -> psutil.Process:
    """Find a process of Ray's that does a unit of a job at this moment."""
    while True:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any("ray::Map(" in part for part in child.cmdline()):
                    return child
        assert process.poll() is None, "the job ended before"


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


def start_aimed(event: str, source: Path, output: Path, logs: Path) -> Preloaded:
    """Start the job without Ray; it kills itself just before an event, as `signalled` has it."""
    number, _, pattern = event.partition(" ")
    job = ["tests.support.without_ray", "curate", *arguments(source, output)]
    return Preloaded("tests.support.signalled", ["SIGKILL", number, pattern, *job], logs)


def test_killed_at_every_kind_of_write_the_job_ends_as_if_undisturbed(
    undisturbed: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """SIGKILL the job again and again while it scores, packs and publishes; then let it end."""
    source, expected = undisturbed
    output = tmp_path / "set"
    for event in KILLS:
        process = start_aimed(event, source, output, tmp_path)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"{event}: {errors[-2000:]}"
        assert shards.read_manifest(output) is None or digests(output) == expected
    run(source, output, **SAMPLING, **KEPT)

    assert digests(output) == expected
    assert list(problems(output)) == []
    assert not list(output.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 12])
def test_killed_at_many_moments_the_job_ends_as_if_undisturbed(
    undisturbed: tuple[Path, dict[str, str]], tmp_path: Path, kills: int
) -> None:
    """SIGKILL Ray's driver, again and again, at moments spread over scoring and packing.

    What is left is done without Ray. The next test has a job of Ray's that gets to its end.
    """
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
    run(source, output, **SAMPLING, **KEPT)

    assert struck >= min(3, kills)
    assert digests(output) == expected
    assert list(problems(output)) == []
    assert not list(output.rglob("*.partial"))


@pytest.mark.slow
def test_a_worker_killed_in_mid_flight_changes_nothing(
    undisturbed: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """Ray starts another worker and does the unit again; the set has every sample once."""
    source, expected = undisturbed
    output = tmp_path / "set"
    process = program("pipelines.curate", arguments(source, output), tmp_path)
    assert wait_for(output, 2, process)
    worker_of(process).kill()
    out, errors = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0, out + errors
    assert digests(output) == expected
