"""An evaluation in MLflow: a run with every number, recorded once."""

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.evaluate import recorded
from pipelines.evaluate.summary import Summary
from tests.support.evaluate_jobs import evaluate, write_pictures

pytest_plugins = ["tests.support.tracking_stores"]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Write HQ pictures and those of a method."""
    write_pictures(tmp_path / "hq", 2)
    write_pictures(tmp_path / "a", 2, noise=5)
    return tmp_path


def run(given: Path, **fields: Any) -> Summary:
    """Evaluate and track it."""
    methods = {"a": given / "a"}
    fields = {"reference": given / "hq", "metrics": ("psnr",), "track": True, **fields}
    return evaluate(given / "out", methods, **fields)


def runs(store: MlflowClient) -> list[Run]:
    """Return all runs of evaluations."""
    experiment = store.get_experiment_by_name(recorded.EXPERIMENT)
    assert experiment is not None
    found: list[Run] = store.search_runs([experiment.experiment_id])
    return found


def test_a_summary_is_one_run(given: Path, store: MlflowClient) -> None:
    """Run again it stays one, and with a further metric there are two."""
    summary = run(given)
    run(given)
    (one,) = runs(store)
    value = summary.methods["a"].values["psnr"]
    assert one.data.metrics == {
        "a/psnr": value.value,
        "a/psnr/low": value.low,
        "a/psnr/high": value.high,
    }
    assert {"report.html", "summary.json"} <= {
        found.path for found in store.list_artifacts(one.info.run_id)
    }
    assert one.data.params["test_set"] == summary.test_set.keys
    assert (one.info.status, one.info.run_name) == ("FINISHED", "out")

    run(given, metrics=("psnr", "ssim"))
    assert len(runs(store)) == 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_job_that_dies_around_its_recording_is_recorded_once(
    given: Path, store: MlflowClient, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The next one records the summary, or finds that the run is there and marks it."""

    def dies(*arguments: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if when == "before":
            patch.setattr(recorded, "start_run", dies)
        else:
            patch.setattr(recorded.paths, "write_bytes", _unless(recorded.RECORDED))
        with pytest.raises(KeyboardInterrupt):
            run(given)
    run(given)

    assert len(runs(store)) == 1


def _unless(name: str) -> Any:
    """Return a writer that is interrupted where it is to write a file of a name."""
    write = recorded.paths.write_bytes

    def writes(path: Any, data: bytes) -> str:
        if path.name == name:
            raise KeyboardInterrupt
        return write(path, data)

    return writes
