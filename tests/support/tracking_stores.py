"""Fixtures of the tests of tracking: an sqlite store per test, reachable or not, or a server."""

import http.server
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from infra.deploy.mlflow_server import mlflow_server
from infra.tracking.run import Run, start_run
from tests.conftest import free_port
from tests.support.stored_runs import EXPERIMENT


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create MLflow's tables once; every test copies the file."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """Point the process at a store of its own."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    return MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def begin(store: MlflowClient, tmp_path: Path) -> Callable[..., Run]:
    """Start runs in one folder."""

    def begin(**options: Any) -> Run:
        return start_run(EXPERIMENT, **{"folder": tmp_path / "run", **options})

    return begin


@pytest.fixture
def come_back(
    store: MlflowClient, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], MlflowClient]:
    """Point the process at a store that cannot be reached until this is called."""
    (tmp_path / "away").touch()  # a file where the store's folder should be
    uri = f"sqlite:///{tmp_path}/away/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    def come_back() -> MlflowClient:
        (tmp_path / "away").unlink()
        (tmp_path / "away").mkdir()
        shutil.copy(empty_store, tmp_path / "away" / "mlflow.db")
        return MlflowClient(tracking_uri=uri)

    return come_back


@pytest.fixture
def server(store: MlflowClient, tmp_path: Path) -> "Iterator[Server]":
    """A real tracking server on the test's store."""
    server = Server(tmp_path)
    yield server
    server.kill()


class Server:
    """``mlflow server`` on a free port, started and killed at will."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._server = mlflow_server(folder, "127.0.0.1", self.port, str(folder / "artifacts"))

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._server.start()

    @contextmanager
    def unavailable(self) -> Iterator[list[str]]:
        """Answer every request with 503 in the killed server's place; yields what was asked."""
        asked: list[str] = []

        class Unavailable(http.server.BaseHTTPRequestHandler):
            def handle_one_request(self) -> None:
                asked.append(self.rfile.readline().decode())
                self.wfile.write(b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
                self.close_connection = True

        with http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Unavailable) as stand_in:
            thread = threading.Thread(target=stand_in.serve_forever)
            thread.start()
            try:
                yield asked
            finally:
                stand_in.shutdown()
                thread.join()

    def kill(self) -> None:
        """Kill the server and its workers, as a lost machine would."""
        self._server.end(signal.SIGKILL)
