"""Reading back what tests of tracking recorded."""

import time
from collections.abc import Callable
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


def wait_until(claim: Callable[[], bool]) -> None:
    """Wait for the background until a claim holds, as long as it takes unless it hangs."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if claim():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come true")
