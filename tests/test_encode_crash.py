"""Real processes, really killed while they encode: the same command ends as if undisturbed."""

import random
import subprocess
import time
from pathlib import Path

import pytest

from datasets.shards import read_manifest
from infra.storage import sha256
from pipelines.encode.verify import problems
from tests.conftest import PATIENCE, program
from tests.support.encoding_jobs import run, write_images, write_networks

IMAGES = 16


def arguments(world: Path, output: Path, draws: int) -> list[str | Path]:
    """Return a job of sixteen images in eight shards, half of them with a draw to be copied."""
    job: list[str | Path] = ["--preset", "cpu", "--input", world / "images", "--output", output]
    job += ["--vae", world / "vae", "--predictor", world / "predictor", "--draws", str(draws)]
    job += ["--reuse", world / "earlier"]
    return [*job, "--samples-per-shard", "2", "--workers", "2", "--no-track"]


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


@pytest.mark.parametrize(
    "kills", [((3,), (9,)), pytest.param(((1, 3), (2, 4, 3)), marks=pytest.mark.slow)], ids=str
)
def test_killed_at_many_moments_the_job_ends_as_if_undisturbed(
    tmp_path: Path, kills: tuple[tuple[int, ...], ...]
) -> None:
    """SIGKILL the driver while it probes, encodes and copies, adds draws, publishes.

    After so many more files each time, first of a set of one draw, then of two.
    The undisturbed set is one process's work, without Ray: that makes no difference either.
    """
    write_networks(tmp_path)
    write_images(tmp_path, IMAGES)
    write_images(tmp_path / "half", IMAGES // 2)
    half = str(tmp_path / "half" / "images")
    run(tmp_path, tmp_path / "earlier", input=half, batch=None)
    expected = {}
    for draws in (1, 2):
        fields = {"draws": draws, "samples_per_shard": 2, "batch": None}
        run(tmp_path, tmp_path / "undisturbed", reuse=str(tmp_path / "earlier"), **fields)
        expected[draws] = digests(tmp_path / "undisturbed")
    output, moments = tmp_path / "set", random.Random(2026)
    for draws, counts in enumerate(kills, start=1):
        for count in counts:
            process = program("pipelines.encode", arguments(tmp_path, output, draws), tmp_path)
            assert kill_after(count, moments.random() * 0.05, process, output)
            assert read_manifest(output) is None or digests(output) in expected.values()
        finish(tmp_path, output, draws)
        assert digests(output) == expected[draws]

    assert list(problems(output)) == []
    assert not list(output.rglob("*.partial"))
