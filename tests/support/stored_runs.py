"""Reading back what tests of tracking recorded."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from tests.conftest import PATIENCE

EXPERIMENT = "latent-pmrf/test"


def runs(client: MlflowClient) -> list[Any]:
    """List the experiment's runs, oldest first."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return client.search_runs([experiment.experiment_id], order_by=["start_time"])


def curve(client: MlflowClient, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    """Read every stored point of a metric, by step."""
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))


def logged(folder: Path, key: str = "loss") -> list[tuple[int, float]]:
    """Read every point of a metric from a run's log, in the order of its lines."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(line["step"], line[key]) for line in lines if key in line]


def waiting_files(folder: Path) -> list[str]:
    """List the files that wait for the store in a run's folder."""
    found = (folder / ".tracking").glob("*/files/**/*")
    return [path.name for path in found if path.is_file()]


def wait_until(claim: Callable[[], bool]) -> None:
    """Wait for the background until a claim holds, as long as it takes unless it hangs."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if claim():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come true")
