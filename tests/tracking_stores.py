"""Fixtures of the tests of tracking: an sqlite store per test, reachable or not."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from infra.tracking import Run, start_run
from tests.stored_runs import EXPERIMENT


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
    return MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def begin(store: MlflowClient, tmp_path: Path) -> Callable[..., Run]:
    """Start runs in one folder, without system metrics."""

    def begin(**options: Any) -> Run:
        defaults = {"folder": tmp_path / "journal", "system_metrics": False}
        return start_run(EXPERIMENT, **{**defaults, **options})

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
