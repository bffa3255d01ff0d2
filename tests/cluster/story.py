"""The stages, each with a host that is killed: run by `python -m tests.cluster` in namespaces.

python -m tests.cluster.story FOLDER
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from infra import paths
from infra.folders.opening import open_folder
from infra.paths import AnyPath, path_of
from tests.cluster.cluster import BUCKET, SECRET, Cluster
from tests.cluster.hosts import ROOT, make_bridge
from tests.conftest import picture
from tests.support.encoding_jobs import write_networks
from tests.support.leaks import leaks
from tests.support.training_sets import SMOKE

PICTURES = 48
SIZE = 64
STEPS, SAVE_EVERY = 300, 100
CURATE = (
    *("--size", str(SIZE), "--stride", str(SIZE), "--scorer", "brisque", "--threshold", "100"),
    *("--val-fraction", "0.25", "--samples-per-shard", "6"),
)
ENCODE = (
    "--device",
    "cpu",
    "--samples-per-shard",
    "6",
    "--draws",
    "2",
    "--degradation",
    "pmrf-128",
)
FLOW = (
    *SMOKE,
    *("--workers", "0", "--max-steps", str(STEPS), "--save-every", str(SAVE_EVERY)),
    *("--log-every", "10", "--validate-every", str(STEPS)),
)
KEPT_SECRET = ("env", "s3.json")  # the files of `python -m infra.deploy` that hold it

_began = time.monotonic()


def say(text: str) -> None:
    """Tell what happens, with the seconds since the start."""
    sys.stdout.write(f"{time.monotonic() - _began:6.1f}  {text}\n")
    sys.stdout.flush()


def write_inputs(folder: Path) -> Path:
    """Write pictures and small networks; returns the folder."""
    (folder / "photos").mkdir(parents=True)
    for number in range(PICTURES):
        picture(number, 2 * SIZE + number, SIZE).save(folder / "photos" / f"{number:02d}.png")
    write_networks(folder)
    return folder


def commands(inputs: str, outputs: str) -> dict[str, list[str]]:
    """Return the three commands; they differ from one place to another by their paths alone."""
    images, latents = f"{outputs}/sets/photos", f"{outputs}/latents/photos"
    networks = ["--vae", f"{inputs}/vae", "--predictor", f"{inputs}/predictor"]
    return {
        "curate": [*("--input", f"{inputs}/photos"), *("--output", images), *CURATE],
        "encode": [*("--input", images), *("--output", latents), *networks, *ENCODE],
        "flow": [*("--latents", latents), *("--output", f"{outputs}/runs/flow"), *FLOW],
    }


def alone(folder: Path, inputs: Path) -> None:
    """Make everything on this machine, on its disk."""
    told = commands(str(inputs), str(folder))
    for name in ("curate", "encode"):
        _run([sys.executable, "-m", f"pipelines.{name}", *told[name], "--no-track"], folder, name)
    launcher = ["deepspeed", "--num_accelerators", "2", "trainers/flow.py"]
    _run([*launcher, *told["flow"], "--no-track"], folder, "flow")


def _run(command: Sequence[str], folder: Path, title: str) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / f"{title}.txt").open("w") as said:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "OMP_NUM_THREADS": "1",
                "DS_ACCELERATOR": "cpu",
            },
            stdout=said,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{title}: {(folder / f'{title}.txt').read_text()[-3000:]}")


def curate(cluster: Cluster, told: Sequence[str], output: AnyPath) -> None:
    """Kill a host of workers in mid-stage: the job goes on without it."""
    job = cluster.job(["pipelines.curate", *told], "curate")
    job.wait_until(lambda: _shards(output) > 0)
    cluster.hosts["worker-2"].kill()
    _assert_unfinished(output)
    if job.code():
        say("the job ended with the host; the same command again")
        cluster.job(["pipelines.curate", *told], "curate-again").end()


def encode(cluster: Cluster, told: Sequence[str], output: AnyPath) -> None:
    """Kill the host of the job itself, and of Ray's head: a new machine goes on."""
    job = cluster.job(["pipelines.encode", *told], "encode")
    job.wait_until(lambda: _shards(output) > 2)
    cluster.hosts["head"].kill()
    _assert_unfinished(output)
    job.code()
    cluster.stop_ray("worker-1", "worker-2")
    cluster.hosts["head"].start()
    cluster.start_ray("head", "worker-1", "worker-2")
    say("a new head, with an empty disk; the same command again")
    cluster.job(["pipelines.encode", *told], "encode-again").end()


def train(cluster: Cluster, told: Sequence[str], output: AnyPath) -> None:
    """Kill the host of one rank in the midst of the steps: a new machine takes its place."""
    command = ["trainers/flow.py", *told]
    first, second = cluster.training(command, "flow")
    saved = output / "checkpoints" / f"step-{SAVE_EVERY:08d}" / "manifest.json"
    first.wait_until(saved.exists)
    cluster.hosts["worker-1"].kill()
    _assert_unfinished(output / "checkpoints" / f"step-{STEPS:08d}")
    say("worker-1 is killed")
    for running in (first, second):
        if running.code() == 0:
            raise AssertionError("a training without one of its hosts ended well")
    cluster.hosts["worker-1"].start()
    say("a new worker-1, with an empty disk; the same command again on both")
    for running in cluster.training(command, "flow-again"):
        running.end()


def _shards(output: AnyPath) -> int:
    """Count the shards that lie below a folder, published or not."""
    return sum(entry.name.endswith(".tar") for entry in open_folder(str(output)).list())


def _assert_unfinished(output: AnyPath) -> None:
    """A kill after the end would show nothing."""
    if (output / "manifest.json").exists():
        raise AssertionError(f"{output} was finished before the host was killed: make it larger")


def digests(folder: AnyPath) -> dict[str, str]:
    """Hash everything that makes a set, or a checkpoint with the state of every rank."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    names = [entry["name"] for entry in manifest.get("shards", [])] + list(manifest["files"])
    return {name: paths.sha256(folder / name) for name in ["manifest.json", *names]}


def states(checkpoint: AnyPath) -> dict[str, str]:
    """Hash what a checkpoint holds, but for the record of the run's paths and the file above it."""
    found = digests(checkpoint)
    return {name: found[name] for name in found.keys() - {"record.json", "manifest.json"}}


def losses(run: AnyPath) -> list[dict[str, float]]:
    """Read the numbers of each step from a run's log, without times and speeds."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key != "time" and "speed/" not in key}
        for line in lines
        if "step" in line
    ]


def compare(what: Callable[[AnyPath], Any], name: str, here: Path) -> None:
    """Compare what the cluster made with what this machine has made alone."""
    mine, expected = what(path_of(f"{BUCKET}/{name}")), what(here / name)
    if mine != expected:
        raise AssertionError(f"{name} differs:\n{mine}\nexpected\n{expected}")
    say(f"{name}: the same ({len(mine)} compared)")


def search(cluster: Cluster, folder: Path) -> None:
    """Search everything that was written on all hosts, and printed, for the secret key."""
    found = leaks(cluster.variables[SECRET], [folder / "lost", folder / "said"])
    public = [path for path in found if path.name not in KEPT_SECRET or _is_open(path)]
    if public or len(found) != len(KEPT_SECRET):
        raise AssertionError(f"the secret key stands in {', '.join(map(str, found))}")
    say("the secret key: in two private files of the services' host, and nowhere else")


def _is_open(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o077)


def main(folder: Path) -> None:
    """Tell the story; an error ends it with its trace."""
    folder.mkdir(parents=True, exist_ok=True)
    make_bridge()
    inputs, here = write_inputs(folder / "inputs"), folder / "alone"
    say("on a single machine: curate, encode, and train on two ranks")
    alone(here, inputs)
    say("four hosts, services, and Ray on three")
    with Cluster(folder) as cluster:
        cluster.start_ray("head", "worker-1", "worker-2")
        bucket = path_of(BUCKET)
        for entry in open_folder(str(inputs)).list():
            paths.write_bytes(bucket / "inputs" / entry.name, (inputs / entry.name).read_bytes())
        told = commands(f"{BUCKET}/inputs", BUCKET)
        say("curate; worker-2 is killed in its midst")
        curate(cluster, told["curate"], bucket / "sets/photos")
        compare(digests, "sets/photos", here)
        cluster.hosts["worker-2"].start()
        cluster.start_ray("worker-2")
        say("encode; the head is killed in its midst")
        encode(cluster, told["encode"], bucket / "latents/photos")
        compare(digests, "latents/photos", here)
        say("train on two hosts")
        train(cluster, told["flow"], bucket / "runs/flow")
        compare(losses, "runs/flow", here)
        if not any((bucket / "mlflow").iterdir()):
            raise AssertionError("MLflow has put no artifact into the bucket")
        compare(states, f"runs/flow/checkpoints/step-{STEPS:08d}", here)
    search(cluster, folder)
    say("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
