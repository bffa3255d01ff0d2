"""Real processes, really killed while they encode: the same command ends as if undisturbed."""

import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from datasets.shards import read_manifest
from infra.storage import sha256
from pipelines.encode.verify import problems
from tests.conftest import PATIENCE, program
from tests.support.encoding_jobs import run, write_images, write_networks
from tests.support.preloaded import Preloaded

IMAGES = 8
KILLS = {  # for sets of one and of two draws: before which write the job is killed
    1: (
        "1 os.rename *probe.json*",
        "2 os.rename *draws-*.tar.*",
        "5 os.rename *draws-*.done.json*",
        "2 os.rename */draws-*/*.tar",
    ),
    2: (
        "3 os.rename *draws-*.tar.*",
        "1 os.rename *draws-*manifest.json*",
        "1 os.rename */draws-*/manifest.json",
    ),
}


def arguments(world: Path, output: Path, draws: int) -> list[str | Path]:
    """Return a job of eight images in eight shards, half of them with a draw to be copied."""
    job: list[str | Path] = ["--preset", "cpu", "--input", world / "images", "--output", output]
    job += ["--vae", world / "vae", "--predictor", world / "predictor", "--draws", str(draws)]
    job += ["--reuse", world / "earlier"]
    return [*job, "--samples-per-shard", "1", "--workers", "2", "--no-track"]


def of(draws: int) -> dict[str, Any]:
    """Return the fields of `arguments` for a job in this process."""
    return {"draws": draws, "samples_per_shard": 1, "batch": None}


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that makes the set."""
    manifest = read_manifest(folder)
    assert manifest is not None
    names = [entry["name"] for entry in manifest["shards"]] + list(manifest["files"])
    return {name: sha256(folder / name) for name in [*names, "manifest.json"]}


def finish(world: Path, output: Path, draws: int) -> None:
    """Run the job to its end; it must succeed."""
    process = program("pipelines.encode", arguments(world, output, draws), world)
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + errors


def progress(output: Path) -> int:
    """Count what is durable: the probe, finished shards in the making, published shards."""
    state = output / ".encode"
    probe = (state / "probe" / "probe.json").exists()
    made = sum(1 for _ in state.glob("draws-*/*.done.json"))
    return probe + made + sum(1 for _ in output.glob("*.tar"))


def kill_after(count: int, pause: float, process: "subprocess.Popen[str]", output: Path) -> bool:
    """Kill the job ``pause`` seconds after ``count`` more files are durable; False if it ended."""
    deadline, before = time.monotonic() + PATIENCE, progress(output)
    while progress(output) < before + count:
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the job does not advance"
        time.sleep(0.002)
    time.sleep(pause)
    process.kill()
    process.communicate()
    return True


class World(NamedTuple):
    """Networks, images and an earlier set, and what sets of one and two draws are in peace."""

    folder: Path
    expected: dict[int, dict[str, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Encode in peace: one process's work, without Ray, which makes no difference either."""
    folder = tmp_path_factory.mktemp("world")
    write_networks(folder)
    write_images(folder, IMAGES)
    write_images(folder / "half", IMAGES // 2)
    half = str(folder / "half" / "images")
    run(folder, folder / "earlier", input=half, batch=None)
    expected = {}
    for draws in (1, 2):
        run(folder, folder / "undisturbed", reuse=str(folder / "earlier"), **of(draws))
        expected[draws] = digests(folder / "undisturbed")
    return World(folder, expected)


def assert_undisturbed(output: Path, expected: dict[str, str]) -> None:
    """Assert that a set is the expected one, whole, and that nothing lies beside it."""
    assert digests(output) == expected
    assert list(problems(output)) == []
    assert not list(output.rglob("*.partial"))


def test_killed_at_every_kind_of_write_the_job_ends_as_if_undisturbed(
    world: World, tmp_path: Path
) -> None:
    """SIGKILL the job while it probes, encodes and copies, adds draws, publishes; then let it end.

    First of a set of one draw, then of two.
    """
    output = tmp_path / "set"
    for draws, events in KILLS.items():
        for event in events:
            number, _, pattern = event.partition(" ")
            job = ["tests.support.without_ray", "encode", *arguments(world.folder, output, draws)]
            aimed = ["SIGKILL", number, pattern, *job]
            process = Preloaded("tests.support.signalled", aimed, tmp_path)
            _, errors = process.communicate()
            assert process.returncode == -signal.SIGKILL, f"{event}: {errors[-2000:]}"
            assert read_manifest(output) is None or digests(output) in world.expected.values()
        run(world.folder, output, reuse=str(world.folder / "earlier"), **of(draws))
        assert_undisturbed(output, world.expected[draws])


@pytest.mark.slow
def test_killed_at_many_moments_the_job_ends_as_if_undisturbed(
    world: World, tmp_path: Path
) -> None:
    """SIGKILL Ray's driver after so many more files each time; first of one draw, then of two.

    Ray ends what is left. In the tests that are not slow it carries out a job of restoration.
    """
    output, moments = tmp_path / "set", random.Random(2026)
    for draws, counts in ((1, (1, 3)), (2, (2, 4, 3))):
        for count in counts:
            job = arguments(world.folder, output, draws)
            process = program("pipelines.encode", job, tmp_path)
            assert kill_after(count, moments.random() * 0.05, process, output)
            assert read_manifest(output) is None or digests(output) in world.expected.values()
        finish(world.folder, output, draws)
        assert_undisturbed(output, world.expected[draws])
