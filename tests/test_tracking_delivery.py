"""Whatever happens to the store or the job, every record arrives once, and nobody waits for it."""

import errno
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from mlflow import MlflowClient

from infra.errors import UsageError
from infra.tracking import delivery
from infra.tracking.delivery import Delivery, deliver
from infra.tracking.run import Run
from tests.support.stored_runs import curve, runs, wait_until

if TYPE_CHECKING:
    from tests.support.tracking_stores import Server

pytest_plugins = ["tests.support.tracking_stores"]
ROOT = Path(__file__).resolve().parents[1]


def noted_attempts(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Let deliveries follow each other quickly; returns the list that what comes of each joins."""
    outcomes: list[str | None] = []
    attempt = Delivery.attempt

    def attempt_and_note(self: Delivery) -> str | None:
        outcomes.append(attempt(self))
        return outcomes[-1]

    monkeypatch.setattr(delivery, "PERIOD", 0.05)
    monkeypatch.setattr(Delivery, "attempt", attempt_and_note)
    return outcomes


def test_a_lost_answer_doubles_nothing(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """Everything sent a second time, the run's creation too, leaves the store as it was."""
    run = begin(params={"lr": 1})
    for step in range(1500):
        run.log_metrics({"loss": math.nan if step == 5 else step}, step)
    run.log_dataset("lsdir", "ab" * 32, "/data/lsdir")
    folder = run.close("FAILED").folder
    (folder / "sent.json").unlink()  # as if killed between the store's commit and its answer

    assert deliver(tmp_path / "journal") == 0
    (stored,) = runs(store)
    assert [step for step, _ in curve(store, stored.info.run_id)] == list(range(1500))
    assert len(stored.inputs.dataset_inputs) == 1
    assert stored.info.status == "FAILED"


def test_a_power_cut_hides_no_later_record(store: MlflowClient, begin: Callable[..., Run]) -> None:
    """Records that take the place of sent ones, lost from the disk, are sent as well."""
    run = begin()
    run.log_metrics({"loss": 0.0, "x" * 200: 0.0}, 0)
    folder = run.close("FAILED").folder
    os.truncate(folder / "records.jsonl", 0)
    with begin() as again:
        again.log_metrics({"loss": 1.0}, 1)
    (stored,) = runs(store)

    assert curve(store, stored.info.run_id) == [(0, 0.0), (1, 1.0)]


def test_what_the_store_refuses_is_kept(
    store: MlflowClient, begin: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    """Someone deletes the run in mid-job: the job ends well, its records stay and that is told."""
    run = begin()
    wait_until(lambda: run.run_id is not None)
    store.delete_run(run.run_id)
    run.log_metrics({"loss": 0.0}, 0)
    outcome = run.close()

    assert outcome.refused == 1
    assert '"loss"' in (outcome.folder / "records.jsonl").read_text()
    assert "not sent again, but kept" in capsys.readouterr().err


def test_a_store_that_is_away_delays_only(
    begin: Callable[..., Run],
    come_back: Callable[[], MlflowClient],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The job runs, ends and is warned once; its records are sent later, with their own times."""
    attempts = noted_attempts(monkeypatch)
    (tmp_path / "report.html").write_text("<h1>Report</h1>")
    with begin(params={"lr": 1}) as run:
        for step in range(20):
            run.log_metrics({"loss": step}, step)
        run.log_artifact(tmp_path / "report.html")
        wait_until(lambda: len(attempts) > 1)
    ended = time.time() * 1000
    told = capsys.readouterr().err

    assert run.outcome is not None
    assert (run.outcome.run_id, run.outcome.records, run.outcome.files) == (None, 23, 1)
    assert told.count("the job goes on") == 1
    assert told.count("infra.tracking.delivery") == 1
    assert "Traceback" not in told
    assert deliver(tmp_path / "journal") == 1

    client = come_back()
    assert deliver(tmp_path / "journal") == 0
    (stored,) = runs(client)
    assert stored.info.status == "FINISHED"
    assert stored.info.end_time <= ended
    assert len(curve(client, stored.info.run_id)) == 20
    assert [file.path for file in client.list_artifacts(stored.info.run_id)] == ["report.html"]
    with pytest.raises(UsageError, match="nothing here waits"):
        deliver(tmp_path / "journal")


def test_the_next_run_brings_the_last_ones_records(
    begin: Callable[..., Run], come_back: Callable[[], MlflowClient], tmp_path: Path
) -> None:
    """A new run in the folder sends its own records, then what an earlier run left."""
    with begin(params={"lr": 1}) as first:
        first.log_metrics({"loss": 1.0}, 0)
    client = come_back()
    with begin(params={"lr": 2}) as second:
        second.log_metrics({"loss": 2.0}, 0)

    assert sorted(run.data.params["lr"] for run in runs(client)) == ["1", "2"]
    assert sorted(run.data.metrics["loss"] for run in runs(client)) == [1.0, 2.0]
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_run_to_continue_may_be_out_of_reach(
    begin: Callable[..., Run],
    come_back: Callable[[], MlflowClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job told to continue a run starts though the store cannot be asked for it."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with begin() as run:
        run.log_metrics({"loss": 1.0}, 0)

    assert run.outcome is not None
    assert run.outcome.records == 4


def test_a_store_that_hangs_holds_nobody(
    begin: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that never answers a request: everything is kept, and closing is bounded."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        run = begin()
        accepted, _ = silent.accept()  # the request is under way, and stays so
        for step in range(1000):
            run.log_metrics({"loss": step}, step)
        outcome = run.close(timeout=0.1)
        accepted.close()

    assert outcome is not None
    assert outcome.records == 1003
    assert len((outcome.folder / "records.jsonl").read_text().splitlines()) == 1003


def test_a_full_disk_does_not_stop_the_job(
    store: MlflowClient,
    begin: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Records wait in memory while the disk is full; the person is told once."""
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if b'"metrics"' in data:
            raise OSError(errno.ENOSPC, "No space left")
        return write(fd, data)

    with begin() as run:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            for step in range(5):
                run.log_metrics({"loss": step}, step)
        run.log_metrics({"loss": 5}, 5)
    (stored,) = runs(store)

    assert capsys.readouterr().err.count("No space left") == 1
    assert curve(store, stored.info.run_id) == [(step, step) for step in range(6)]


JOB = """
import sys
from pathlib import Path
from infra.tracking.run import start_run

folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with start_run("latent-pmrf/test", folder=folder, params={"lr": 1}, system_metrics=False) as run:
    for step in range(first, last):
        run.log_metrics({"loss": step}, step)
        sys.stdout.write(f"{step}\\n")
        sys.stdout.flush()
"""


def test_a_killed_process_loses_no_metric(store: MlflowClient, tmp_path: Path) -> None:
    """SIGKILL in mid-run: what the job had recorded is in the run that the next process ends."""
    command = [sys.executable, "-c", JOB, str(tmp_path / "journal")]
    with subprocess.Popen(
        [*command, "0", "10000000"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None
        recorded = -1
        for line in job.stdout:
            recorded = int(line)
            if recorded == 2000:
                job.kill()
            if recorded > 20_000:  # the kill takes a moment; what is printed is recorded
                break
        job.kill()
    resumed = max(0, recorded - 50)
    subprocess.run(
        [*command, str(resumed), str(recorded + 100)], cwd=ROOT, check=True, capture_output=True
    )
    (stored,) = runs(store)

    assert stored.info.status == "FINISHED"
    assert curve(store, stored.info.run_id) == [(step, step) for step in range(recorded + 100)]


def test_a_server_that_dies_loses_no_metric(
    server: "Server",
    store: MlflowClient,
    begin: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed in mid-run and started again, it has every step once; the job never waited for it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    attempts = noted_attempts(monkeypatch)
    server.start()
    with begin(params={"lr": 1}) as run:
        for step in range(300):
            if step == 100:
                wait_until(lambda: run.run_id is not None and bool(curve(store, run.run_id)))
                server.kill()
            if step == 200:  # steps 100 to 199 were recorded with no server there to answer
                wait_until(lambda: any(attempts))
                server.start()
            run.log_metrics({"loss": step, "lr": 1e-4}, step)
        run.log_image("grid", np.zeros((32, 32, 3), np.uint8), 299)
    told = capsys.readouterr().err
    (stored,) = runs(store)

    assert run.outcome is not None
    assert (run.outcome.records, run.outcome.files) == (0, 0)
    assert run.where().startswith(f"{server.uri}/#/experiments/")
    assert stored.info.status == "FINISHED"
    assert curve(store, stored.info.run_id) == [(step, step) for step in range(300)]
    assert len(curve(store, stored.info.run_id, "lr")) == 300
    assert len(list((tmp_path / "artifacts").rglob("grid+step+299+*"))) == 2
    assert told.count("the job goes on") == 1
