"""What several tests need: pictures on disk, and programs started as a user starts them."""

import functools
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import botocore.session
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from sqlalchemy import Engine, event

from tests.support.faulty_proxy import FaultyProxy
from tests.support.s3_server import S3Server, use

ROOT = Path(__file__).resolve().parents[1]
ALONE = "LATENT_PMRF_TEST_ALONE"  # is set where a test that forks has a process for itself
PATIENCE = 600.0  # seconds until a program is taken to hang; no test waits for it to pass

# A property is checked on the same examples everywhere, however slow the machine is: a test that
# was green stays so until the code changes. `--hypothesis-profile=search` draws other examples at
# every run, and prints how to repeat one that fails.
settings.register_profile(
    "suite",
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "search", settings.get_profile("suite"), derandomize=False, print_blob=True
)
settings.load_profile("suite")

# Only a power failure loses what was written and not yet flushed to the disk, and no test has one:
# to a process that is killed and to the next one the files are the same. Waiting for the disk was
# a third of the time of a small job. `test_storage` has the order of flushes and renames. SQLite
# is told the same for MLflow's stores.
os.fsync = lambda descriptor: None


@event.listens_for(Engine, "connect")
def flush_nothing(connection: Any, _: object) -> None:
    """Have a database flush nothing to the disk either."""
    connection.execute("PRAGMA synchronous = OFF")


# A full collection of garbage looks at all that the libraries have made, which is a third of a
# second; by default there are so many that they were a quarter of the time of some files.
gc.set_threshold(50_000)

# Every client of S3 reads a description of the protocol, two megabytes of JSON, which was a
# sixth of the time of the tests of buckets. The clients of a process share it here.
botocore.session.create_loader = functools.cache(botocore.session.create_loader)

Pictures = Callable[..., Path]


def pytest_fixture_setup() -> None:
    """Start what a fixture takes from torch's generator from one seed, in any order of tests."""
    torch.manual_seed(0)


def pytest_runtest_call() -> None:
    """Do so for the test itself, whether or not it was the first to need a shared fixture."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked `forks` in a process that has run no other test.

    A process that is forked takes over the locks and objects of all libraries, but not the threads
    that serve them: behind tests of Ray, gRPC or OpenMP one of a hundred of its children crashed.
    Programs that fork are started for it, and have no such past.
    """
    if pyfuncitem.get_closest_marker("forks") is None or ALONE in os.environ:
        return None
    from tests.support.preloaded import Preloaded

    with tempfile.TemporaryDirectory() as folder:
        arguments = ["-p", "no:cacheprovider", "-p", "no:xdist", "-m", "forks", pyfuncitem.nodeid]
        run = Preloaded("pytest", arguments, Path(folder), **{ALONE: "1"})
        said = "".join(run.communicate())
    if run.returncode:
        pytest.fail(said, pytrace=False)
    return True


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Draw an RGB picture with structure at several scales: smooth shapes, an edge, some grain."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth).astype(np.float64)
    pixels += rng.normal(0, 4 + 4 * (seed % 5), pixels.shape)
    pixels[height // 3 : height // 2, width // 4 :] *= 0.4
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """Write ``count`` pictures below a folder, every third in a sub-folder; returns the folder."""

    def write(count: int, width: int = 160, height: int = 128, name: str = "raw") -> Path:
        folder = tmp_path / name
        for number in range(count):
            below = folder / "more" if number % 3 == 2 else folder
            below.mkdir(parents=True, exist_ok=True)
            picture(number, width + 8 * number, height).save(below / f"photo-{number:02d}.png")
        return folder

    return write


@pytest.fixture(scope="module")
def probe_of_two() -> Iterator[None]:
    """Have jobs of encoding measure two images before they begin, in place of sixteen.

    For tests of something else: of a job of eight images the usual probe is a third.
    """
    from pipelines.encode import job

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "IMAGES", 2)
        yield


@pytest.fixture
def room_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have half of every disk free, as jobs see it, however full that of this machine is."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=usage.total // 2))


@pytest.fixture
def signals_by_default() -> Iterator[None]:
    """Have signals do what they do in a terminal, also where the tests run under ``nohup``."""
    dying = dict.fromkeys((signal.SIGHUP, signal.SIGTERM), signal.SIG_DFL)
    defaults = {signal.SIGINT: signal.default_int_handler, **dying}
    before = {number: signal.signal(number, usual) for number, usual in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start a real S3 server, once; it has the bucket `tests`."""
    with S3Server(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server


@pytest.fixture(scope="module")
def s3_proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    """Point the AWS variables, with all rights, at a proxy in front of the server."""
    with FaultyProxy(s3_server.endpoint) as proxy, pytest.MonkeyPatch.context() as environment:
        use(environment, proxy.endpoint)
        yield proxy


def free_port() -> int:
    """Find a port that nobody uses or will be given: tests that run beside this one look elsewhere.

    It is below those that the kernel hands out by itself, in a range of this process's own.
    """
    first = 20_000 + 16 * (os.getpid() % 750)
    for port in range(first, first + 16):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError(f"ports {first} to {first + 15} are all taken")


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which a program tracks to ``folder``, and has no home directory."""
    return {
        **os.environ,
        "HOME": "/dev/null/home",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "OMP_NUM_THREADS": "1",
    }


def program(
    module: str,
    arguments: Sequence[str | Path],
    folder: Path,
    cwd: Path = ROOT,
    **variables: str,
) -> "subprocess.Popen[str]":
    """Start ``python -m module`` as a user would, by default from the project's root."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env=environment(folder) | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
