"""`python -m infra.deploy`: an object store and MLflow without Docker, and keys kept private."""

import base64
import json
import os
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from mlflow import MlflowClient

from infra.deploy.config import ServicesConfig
from infra.deploy.private import read_exports, write_exports
from infra.deploy.server import Server, check_ports
from infra.errors import UsageError, UserError
from tests.conftest import PATIENCE, free_port, program
from tests.support.leaks import CHUNK, is_in, leaks
from tests.support.processes import descendants, wait_for_end
from tests.support.s3_server import free_ports

READABLE_BY_OTHERS = 0o044
HOST = "127.0.0.2"  # of this machine, but not what MLflow takes for it: as another address is


@contextmanager
def services(folder: Path, ports: tuple[int, int]) -> Iterator["subprocess.Popen[str]"]:
    """Start the command, and wait until it says that both servers are up."""
    options = [
        "--folder",
        folder,
        "--host",
        HOST,
        "--port",
        str(ports[0]),
        "--mlflow-port",
        str(ports[1]),
    ]
    process = program("infra.deploy", options, folder.parent)
    assert process.stdout is not None
    try:
        said = iter(process.stdout.readline, "")
        assert any("Both are up" in line for line in said), process.communicate()[1]
        yield process
    finally:
        process.terminate()  # in vain where it has ended
        process.communicate(timeout=PATIENCE)


@pytest.fixture
def ports() -> tuple[int, int]:
    """Ten ports in a row, of which the first is returned, and another."""
    first = next(port for port in range(30_000, 32_000, 10) if _are_free(port))
    return first, free_port()


def _are_free(first: int) -> bool:
    try:
        check_ports(HOST, range(first, first + 10))
    except UsageError:
        return False
    return True


@pytest.mark.slow
def test_artifacts_go_to_the_bucket_and_the_secret_nowhere(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    """A second start has the same keys and data; a signal ends all processes; so does a death."""
    folder, artifact = tmp_path / "services", tmp_path / "curve.txt"
    artifact.write_text("0.5")
    with services(folder, ports) as process:
        variables = read_exports(folder / "env")
        secret = variables["AWS_SECRET_ACCESS_KEY"]
        client = MlflowClient(tracking_uri=variables["MLFLOW_TRACKING_URI"])
        run = client.create_run(client.create_experiment("faces")).info
        client.log_artifact(run.run_id, str(artifact))  # this process has no key
        key = run.artifact_uri.replace("mlflow-artifacts:", "mlflow") + "/curve.txt"

        assert _bucket(variables).Object(key).get()["Body"].read() == b"0.5"
        assert _asked_by_a_page(variables["MLFLOW_TRACKING_URI"]) == 200
        with pytest.raises(Exception, match="SignatureDoesNotMatch"):
            _bucket({**variables, "AWS_SECRET_ACCESS_KEY": "another"}).Object(key).get()

        started = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 143, errors
        assert not wait_for_end(started)

    with services(folder, ports) as process:
        assert read_exports(folder / "env") == variables
        assert _bucket(variables).Object(key).get()["Body"].read() == b"0.5"

        started = descendants(process.pid)
        os.kill(next(pid for pid in started if "weed" in _command(pid)), signal.SIGKILL)
        said, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert errors.startswith("error: the object store ended with exit code -9")
        assert not wait_for_end(started)

    assert not is_in(secret, said + errors)
    assert {path.name for path in leaks(secret, [tmp_path])} == {"env", "s3.json"}
    for path in leaks(secret, [tmp_path]):
        assert not path.stat().st_mode & READABLE_BY_OTHERS
    assert not folder.stat().st_mode & READABLE_BY_OTHERS


def _asked_by_a_page(uri: str) -> int:
    """Ask as MLflow's page does in a browser; returns the status of the answer."""
    request = urllib.request.Request(
        f"{uri}/ajax-api/2.0/mlflow/experiments/search",
        data=b'{"max_results": 1}',
        headers={"Origin": uri, "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return int(answer.status)


def _bucket(variables: dict[str, str]) -> Any:
    """Open the bucket with the keys of the file that a user sources."""
    session = boto3.session.Session(
        variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1"
    )
    store = session.resource("s3", endpoint_url=variables["AWS_ENDPOINT_URL_S3"])
    return store.Bucket("latent-pmrf")


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_a_port_that_is_taken_is_refused_before_anything_starts() -> None:
    """SeaweedFS would take another one in silence."""
    port = free_ports(1)[0]
    taken = pytest.raises(UsageError, match=f"127.0.0.1:{port} cannot be listened on")
    with socket.create_server(("127.0.0.1", port)), taken:
        check_ports("127.0.0.1", [port])
    check_ports("127.0.0.1", [port])
    with pytest.raises(UsageError, match="give another --host"):
        check_ports("192.0.2.1", [port])  # an address for documentation: nobody's


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bucket": "Faces"}, "3 to 63 small letters"),
        ({"host": "0.0.0.0"}, "the one address by which others reach it"),
        ({"port": 5000}, "ports from 5000 to 5009 are the object store's"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], said: str) -> None:
    """The message says what is allowed."""
    with pytest.raises(ValueError, match=said):
        ServicesConfig(**options)


def test_a_server_that_ends_at_its_start_is_explained(tmp_path: Path) -> None:
    """By the exit code and the end of its log."""
    server = Server(
        "the store", ["sh", "-c", "echo no disk; exit 3"], tmp_path, "http://127.0.0.1:1"
    )

    with pytest.raises(UserError, match=r"the store ended with exit code 3.*\n?no disk"):
        server.start()


@pytest.mark.parametrize(
    "written",
    [
        "a key: {}".format,
        lambda secret: json.dumps({"key": secret}),
        lambda secret: f"http://store/?key={urllib.parse.quote(secret, safe='')}",
        lambda secret: base64.b64encode(f"user:{secret}".encode()).decode(),
        lambda secret: " " * (CHUNK - 5) + secret,
    ],
    ids=["plain", "JSON", "URL", "base64", "at a seam"],
)
def test_a_secret_is_found_however_it_is_written(
    tmp_path: Path, written: Callable[[str], str]
) -> None:
    """What searches the outputs of all programs would find it, and finds no other text."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "log").write_text(written('a+secret/of "tests"'))
    (tmp_path / "other").write_text("another secret")

    assert leaks('a+secret/of "tests"', [tmp_path]) == [tmp_path / "below" / "log"]


def test_exports_are_private_and_read_back(tmp_path: Path) -> None:
    """Whatever the umask and whatever the value; a line of another kind is refused."""
    path, variables = tmp_path / "env", {"A": "a b'c\"$d", "B": ""}
    before = os.umask(0)
    try:
        write_exports(path, variables, "a note")
    finally:
        os.umask(before)

    assert path.stat().st_mode & 0o777 == 0o600
    assert read_exports(path) == variables
    shell = subprocess.run(
        ["sh", "-c", f'. {path}; printf %s "$A"'], capture_output=True, text=True, check=True
    )
    assert shell.stdout == variables["A"]
    path.write_text("A=1\n")
    with pytest.raises(UserError, match="delete the file to have new keys made"):
        read_exports(path)
