"""A job whose set is in a bucket is killed, or its server: others finish it as if undisturbed."""

import itertools
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from datasets.shards import read_manifest
from infra.errors import UserError
from infra.folders.bucket_path import BucketPath
from pipelines.encode.job import Encoding
from pipelines.encode.verify import problems
from tests.conftest import PATIENCE, program
from tests.support.curation_jobs import InProcess
from tests.support.encoding_jobs import job, published, run, write_images, write_networks
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.in_a_bucket import inputs_uploaded, move_to_another_machine
from tests.support.leaks import is_in, leaks
from tests.support.s3_server import OWNER, S3Server

FORK = multiprocessing.get_context("fork")
STATE = {"finished.json", "identity.json", "lock", "probe", "published.json", "times.json"}
FEW = {  # for sets of one and of two draws: the requests with which the job dies one time each
    1: ("PUT draws-0-1/train-000000.tar done", "PUT set/manifest.json lost"),
    2: ("DELETE set/manifest.json done",),
}
MANY = {
    1: (
        "PUT .encode/probe/probe.json lost",
        "PUT draws-0-1/train-000001.tar lost",
        "PUT draws-0-1/train-000000.tar.sums.json done",
        "PUT draws-0-1/manifest.json done",
        "DELETE draws-0-1/train-000001.tar lost",
        "PUT set/.encode/finished.json lost",
    ),
    2: (
        "PUT draws-1-2/train-000003.tar.done.json done",
        "PUT set/versions/ lost",
        "PUT set/train-000003.tar done",
        "PUT set/manifest.json done",
    ),
}


class World(NamedTuple):
    """Networks and images in a bucket, and what sets of one and two draws are in peace."""

    bucket: BucketPath
    expected: dict[int, dict[str, bytes]]


def of(draws: int) -> dict[str, Any]:
    """Return the fields of a job with two shards for each of its generations of draws."""
    return {"draws": draws, "samples_per_shard": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, s3_proxy: FaultyProxy) -> Iterator[World]:
    """Make networks, images and sets on the disk, and upload what the jobs are to read."""
    disk = tmp_path_factory.mktemp("world")
    write_networks(disk)
    write_images(disk, 2)
    expected = {}
    for draws in (1, 2):
        run(disk, disk / "set", **of(draws))
        expected[draws] = published(disk / "set")
    bucket = inputs_uploaded(disk, "s3://tests/crash")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield World(bucket, expected)


def elsewhere(world: World, output: BucketPath, draws: int, machine: Path) -> None:
    """Encode on a machine that has nothing, and leave nothing there but copies of the networks."""
    move_to_another_machine(machine)
    Encoding(job(world.bucket, output, **of(draws))).run(InProcess())
    assert [path.name for path in machine.glob("*/*")] == [".cache"]


def killed(world: World, output: BucketPath, draws: int, machine: Path, fault: Fault) -> bool:
    """Encode on a new machine and kill the job with the request of ``fault``; False if it ends."""
    dying = FORK.Process(target=elsewhere, args=(world, output, draws, machine))
    started = threading.Event()

    def kill() -> None:
        started.wait()
        os.kill(dying.pid or 0, signal.SIGKILL)

    fault.before = kill
    dying.start()
    started.set()
    dying.join(PATIENCE)
    assert dying.exitcode in (0, -signal.SIGKILL)
    return dying.exitcode != 0


def finish(world: World, output: BucketPath, draws: int, machine: Path) -> None:
    """Encode to the end on a new machine; the set is the expected one, and nothing is beside it."""
    ending = FORK.Process(target=elsewhere, args=(world, output, draws, machine))
    ending.start()
    ending.join(PATIENCE)
    assert ending.exitcode == 0
    assert published(output) == world.expected[draws]
    assert list(problems(output)) == []
    assert {path.name for path in (output / ".encode").iterdir()} == STATE
    assert not [entry for entry in output.folder.list() if ".tally" in entry.name]


@pytest.mark.parametrize(
    "writes", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_killed_while_it_writes_another_machine_ends_the_job(
    world: World, s3_proxy: FaultyProxy, tmp_path: Path, writes: Mapping[int, Sequence[str]]
) -> None:
    """SIGKILL while it probes, encodes, publishes, grows; each time an empty machine goes on.

    The request with which the job dies is lost, or is done without anybody learning of it.
    """
    output = world.bucket / tmp_path.name / "set"
    for draws, events in writes.items():
        for number, event in enumerate(events):
            method, path, end = event.split()
            fault = Fault(method=method, path=path, reset=end == "lost")
            s3_proxy.faults = [fault]
            assert killed(world, output, draws, tmp_path / f"{draws}-{number}", fault), event
            assert read_manifest(output) is None or published(output) in world.expected.values()
        finish(world, output, draws, tmp_path / f"{draws}-last")


@pytest.mark.slow
@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_killed_at_any_write_another_machine_ends_the_job(
    world: World, s3_proxy: FaultyProxy, tmp_path: Path, draws: int, method: str
) -> None:
    """Every request that writes is once the last of its job."""
    for number in itertools.count():
        output = world.bucket / tmp_path.name / f"{number}" / "set"
        for before in range(1, draws):
            run(world.bucket, output, **of(before))
        fault = Fault(method=method, path=f"/{number}/set/", skip=number)
        s3_proxy.faults = [fault]
        is_killed = killed(world, output, draws, tmp_path / f"machine-{number}", fault)
        s3_proxy.harmless()
        finish(world, output, draws, tmp_path / f"last-{number}")
        if not is_killed:
            break
    assert number > 10


def test_a_server_that_is_killed_and_comes_back_costs_nothing(
    world: World, s3_server: S3Server, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    """SIGKILL the server while the job writes a shard; the request is sent again to the next."""
    output = world.bucket / tmp_path.name / "set"

    def restart() -> None:
        s3_server.kill()
        s3_server.start()

    s3_proxy.faults = [Fault(method="PUT", path="train-000001.tar", before=restart, reset=True)]
    run(world.bucket, output, **of(1))

    assert published(output) == world.expected[1]


def test_a_server_that_stays_away_ends_the_job_in_a_sentence(
    world: World,
    s3_server: S3Server,
    s3_proxy: FaultyProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same command, when the server is back, finishes the set.

    Only the first is told to try twice: a server that starts answers some reads with 500 at first.
    """
    output = world.bucket / tmp_path.name / "set"
    away = Fault(method="PUT", path="train-000001.tar", before=s3_server.kill, reset=True)
    s3_proxy.faults = [away]
    try:
        with monkeypatch.context() as hasty:
            hasty.setenv("AWS_MAX_ATTEMPTS", "2")
            with pytest.raises(UserError, match=r"train-000001.tar: the connection to .* broke"):
                run(world.bucket, output, **of(1))
    finally:
        s3_server.start()
    assert read_manifest(output) is None
    run(world.bucket, output, **of(1))

    assert published(output) == world.expected[1]


@pytest.mark.slow
def test_the_command_encodes_in_a_bucket_and_tells_nobody_the_secret(
    world: World, tmp_path: Path
) -> None:
    """Through Ray, whose workers have the credentials from their environment.

    The secret is not in what the command says, in the set and its state, in the copies of the
    networks, or in Ray's logs.
    """
    output = world.bucket / tmp_path.name / "set"
    names = {"input": "images", "vae": "vae", "predictor": "predictor"}
    given = [f"--{name}={world.bucket / place}" for name, place in names.items()]
    given += [f"--output={output}", "--preset=cpu", "--batch=2", "--samples-per-shard=1"]
    with tempfile.TemporaryDirectory(prefix="ray-") as ray:
        places = {"RAY_TMPDIR": ray, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        arguments = [*given, "--workers=2", "--no-track"]
        process = program("pipelines.encode", arguments, tmp_path, **places)
        out, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, out + errors
        found = leaks(OWNER[1], [Path(ray), tmp_path])
        logs = sum(path.is_file() for path in Path(ray).rglob("*"))

    assert published(output) == world.expected[1]
    assert not is_in(OWNER[1], out + errors)
    assert logs > 0
    assert list(found) == []
    for entry in output.folder.list():
        assert not is_in(OWNER[1], output.folder.read(entry.name).decode(errors="replace"))
