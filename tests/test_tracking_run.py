"""A run arrives in MLflow whole, ends as what it was, and is continued when it should be."""

import contextlib
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from infra.errors import UsageError, UserError
from infra.notices import Notices
from infra.tracking.record import Resume
from infra.tracking.run import Run
from infra.tracking.store import TOKEN_TAG
from infra.tracking.uploader import Uploader
from tests.support.stored_runs import curve, logged, runs, wait_until, waiting_files

pytest_plugins = ["tests.support.tracking_stores"]
ROOT = Path(__file__).resolve().parents[1]


def test_a_run_holds_what_was_recorded(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """Parameters, tags, curves, data, report and picture are there; nothing stays behind."""
    (tmp_path / "report.html").write_text("<h1>Report</h1>")
    with begin(name="demo", params={"model": {"width": 128}, "note": "x" * 9000}) as run:
        for step in range(50):
            run.log_metrics({"loss": 1 / (step + 1), "train/lr%": 1e-4}, step)
        run.log_dataset("lsdir", "ab" * 32, "/data/lsdir", "training")
        run.log_artifact(tmp_path / "report.html")
        run.log_image("val/grid", np.zeros((64, 128, 3), np.uint8), 10)
    (stored,) = runs(store)

    assert run.run_id == stored.info.run_id
    assert (stored.info.run_name, stored.info.status) == ("demo", "FINISHED")
    assert stored.data.params["model.width"] == "128"
    assert stored.data.params["note"].endswith("(cut from 9000 characters)")
    assert stored.data.tags["mlflow.loggedImages"] == "True"
    commit = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    assert stored.data.tags.get("mlflow.source.git.commit", "") == commit
    assert curve(store, stored.info.run_id) == [(step, 1 / (step + 1)) for step in range(50)]
    assert len(curve(store, stored.info.run_id, "train/lr_")) == 50
    (data,) = stored.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("lsdir", ("ab" * 32)[:36])
    assert "ab" * 32 in data.dataset.profile
    assert [tag.value for tag in data.tags] == ["training"]
    artifacts = [file.path for file in store.list_artifacts(stored.info.run_id)]
    assert artifacts == ["images", "report.html"]
    assert len(store.list_artifacts(stored.info.run_id, "images")) == 2
    assert (tmp_path / "mlruns" / "latent-pmrf-test").is_dir()  # beside the store, wherever we run
    assert waiting_files(tmp_path / "run") == []


def test_strange_numbers_survive(store: MlflowClient, begin: Callable[..., Run]) -> None:
    """NaN is stored as NaN, an infinity as the largest number, as MLflow does."""
    with begin() as run:
        run.log_metrics({"loss": math.nan, "high": math.inf}, 1)
    (stored,) = runs(store)

    assert math.isnan(stored.data.metrics["loss"])
    assert stored.data.metrics["high"] == sys.float_info.max


def test_many_numbers_at_once(store: MlflowClient, begin: Callable[..., Run]) -> None:
    """More metrics and parameters than one request of MLflow's takes are split."""
    with begin(params={f"p{n}": n for n in range(250)}) as run:
        run.log_metrics({f"m{n}": n for n in range(2300)}, 0)
    (stored,) = runs(store)

    assert len(stored.data.metrics) == 2300
    assert len(stored.data.params) == 250


def test_the_machine_is_measured(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """System metrics arrive under the names that MLflow's page of them looks for."""
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING")
    with begin():
        wait_until(lambda: '"second"' in (tmp_path / "run" / "log.jsonl").read_text())
    (stored,) = runs(store)

    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(
        stored.data.metrics
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (SystemExit(0), "FINISHED"),
        (ValueError("broken"), "FAILED"),
        (SystemExit(3), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
    ],
)
def test_the_status_tells_how_it_ended(
    store: MlflowClient, begin: Callable[..., Run], error: BaseException | None, status: str
) -> None:
    """A run ends as what happened in its block."""
    with contextlib.suppress(*([] if error is None else [type(error)])), begin():
        if error is not None:
            raise error
    (stored,) = runs(store)

    assert stored.info.status == status


def test_sigterm_ends_a_run_as_killed(store: MlflowClient, begin: Callable[..., Run]) -> None:
    """The signal unwinds the block with exit code 143; afterwards the old handler is back."""
    before = signal.getsignal(signal.SIGTERM)

    def job() -> None:
        with begin() as run:
            run.log_metrics({"loss": 1.0}, 0)
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: False)

    with pytest.raises(SystemExit, match="143"):
        job()
    (stored,) = runs(store)

    assert stored.info.status == "KILLED"
    assert curve(store, stored.info.run_id) == [(0, 1.0)]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_job_may_handle_sigterm_itself(store: MlflowClient, begin: Callable[..., Run]) -> None:
    """A trainer that saves on SIGTERM and leaves its loop is heard first, and its run is KILLED."""
    before = signal.getsignal(signal.SIGTERM)
    with Notices() as notices:
        with begin():
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: notices.take()[0])
        assert signal.getsignal(signal.SIGTERM) != before
    (stored,) = runs(store)

    assert stored.info.status == "KILLED"
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_ranks_are_silent(
    begin: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run off rank 0 takes everything, writes nothing and reaches no store."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING")
    with begin(params={"a": 1}) as run:
        run.log_metrics({"loss": 1.0}, 0)
        run.log_artifact(tmp_path / "absent")
        run.log_image("grid", np.zeros((8, 8, 3), np.uint8), 0)

    assert (run.run_id, run.token) == (None, "")
    assert not (tmp_path / "run").exists()


def test_a_killed_run_is_continued(store: MlflowClient, begin: Callable[..., Run]) -> None:
    """The same job goes on with its run; steps done again keep their first value."""
    first = begin(params={"lr": 1})
    for step in range(10):
        first.log_metrics({"loss": step}, step)
    first.log_metrics({"kept": 1})
    first.close("KILLED")
    with begin(params={"lr": 1}) as second:
        wait_until(lambda: runs(store)[0].info.status == "RUNNING")
        for step in range(6, 15):  # from the checkpoint of step 6
            second.log_metrics({"loss": step + 0.5}, step)
        second.log_metrics({"kept": 2})
    (stored,) = runs(store)

    assert stored.info.status == "FINISHED"
    assert curve(store, stored.info.run_id) == [
        *((step, step) for step in range(10)),
        *((step, step + 0.5) for step in range(10, 15)),
    ]
    assert stored.data.metrics["kept"] == 2  # of the whole run, so the last counts


@pytest.mark.parametrize("reached", [True, False])
def test_a_resumed_run_is_rewound(
    store: MlflowClient,
    begin: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reached: bool,
) -> None:
    """The log has each step once, as it was done last; the store too, as it heard of it first."""
    with monkeypatch.context() as patch:
        if not reached:
            patch.setattr(Uploader, "attempt", lambda _: "away")
        first = begin(params={"lr": 1})
        for step in range(10):
            first.log_metrics({"loss": step}, step)
        first.close("KILLED")
    with begin(params={"lr": 1}, resume=Resume(first.token, 5)) as second:
        for step in range(6, 15):
            second.log_metrics({"loss": step + 0.5}, step)
    (stored,) = runs(store)
    new = 10 if reached else 6

    assert logged(tmp_path / "run") == [
        *((step, step) for step in range(6)),
        *((step, step + 0.5) for step in range(6, 15)),
    ]
    assert curve(store, stored.info.run_id) == [
        *((step, step) for step in range(new)),
        *((step, step + 0.5) for step in range(new, 15)),
    ]


def test_a_fresh_start_logs_from_the_first_step(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """A job that was killed before its first checkpoint goes on with its run, and an empty log."""
    for _ in range(2):
        run = begin(resume=Resume(None, -1))
        run.log_metrics({"loss": 1.0}, 0)
        run.close("KILLED")

    assert len(runs(store)) == 1
    assert logged(tmp_path / "run") == [(0, 1.0)]


def test_an_untracked_run_has_its_log(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """It keeps no files; tracked when it is resumed, it arrives from its first step on."""
    (tmp_path / "report.html").write_text("<h1>Report</h1>")
    with begin(track=False) as first:
        first.log_metrics({"loss": 1.0}, 0)
        first.log_artifact(tmp_path / "report.html")
    assert store.get_experiment_by_name("latent-pmrf/test") is None
    assert waiting_files(tmp_path / "run") == []

    with begin(resume=Resume(first.token, 0)) as second:
        second.log_metrics({"loss": 2.0}, 1)
    (stored,) = runs(store)
    assert curve(store, stored.info.run_id) == [(0, 1.0), (1, 2.0)]


def test_a_folder_has_one_recorder(begin: Callable[..., Run]) -> None:
    """Nobody else records or sends while a run is open; afterwards anyone may."""
    run = begin()
    with pytest.raises(UserError, match="another process"):
        begin()
    run.close()
    begin().close()


@pytest.mark.parametrize("name", ["step", "second", "time"])
def test_the_clocks_of_the_log_are_no_metrics(begin: Callable[..., Run], name: str) -> None:
    """A metric that the log could not tell from its own clocks is refused."""
    with begin() as run, pytest.raises(ValueError, match=name):
        run.log_metrics({name: 1.0}, 0)


def test_a_token_is_a_name(begin: Callable[..., Run]) -> None:
    """A token that would lead out of the folder is refused."""
    with pytest.raises(UsageError, match="letters"):
        begin(resume=Resume("../mine"))


def test_another_job_is_another_run(store: MlflowClient, begin: Callable[..., Run]) -> None:
    """Other parameters, or a run that finished, make a new run."""
    begin(params={"lr": 1}).close("FAILED")
    begin(params={"lr": 2}).close()
    begin(params={"lr": 2}).close()

    assert [run.data.params["lr"] for run in runs(store)] == ["1", "2", "2"]


def test_a_checkpoint_knows_its_run(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """A token continues a run from another folder with other parameters, and the change is told."""
    first = begin(params={"lr": 1, "seed": 7})
    first.close()
    begin(
        folder=tmp_path / "elsewhere", resume=Resume(first.token), params={"lr": 2, "seed": 7}
    ).close()
    (stored,) = runs(store)

    assert stored.data.params == {"lr": "1", "seed": "7"}
    assert stored.data.tags["changed.lr"] == "1 -> 2"
    assert "changed.seed" not in stored.data.tags
    assert stored.data.tags[TOKEN_TAG] == first.token


def test_mlflows_own_variables_are_honoured(
    store: MlflowClient, begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLFLOW_EXPERIMENT_NAME names the experiment, MLFLOW_RUN_ID the run, also when resumed."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    experiment = store.create_experiment("theirs")
    theirs = store.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
    with begin() as run:
        run.log_metrics({"loss": 1.0}, 0)

    monkeypatch.delenv("MLFLOW_RUN_ID")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    with begin(resume=Resume(run.token)) as again:
        again.log_metrics({"loss": 2.0}, 1)

    assert (run.run_id, again.run_id) == (theirs, theirs)
    assert [found.info.run_id for found in store.search_runs([experiment])] == [theirs]
    assert curve(store, theirs) == [(0, 1.0), (1, 2.0)]
    assert store.get_experiment_by_name("latent-pmrf/test") is None


def test_an_unknown_run_id_is_refused(
    begin: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that the store does not know is told before the job starts."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)

    with pytest.raises(UsageError, match="no such run"):
        begin()
    assert not (tmp_path / "run").exists()


def test_mlflow_is_imported_only_for_a_run() -> None:
    """Importing our module takes no second: MLflow is not loaded with it."""
    probe = "import sys, infra.tracking.run; sys.exit('mlflow' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=False).returncode == 0
