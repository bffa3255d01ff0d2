"""Whatever happens to the store or the job, every record arrives once, and nobody waits for it."""

import errno
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from mlflow import MlflowClient

from infra.errors import UsageError, UserError
from infra.tracking.record import Resume
from infra.tracking.run import Run
from infra.tracking.store import RunInStore
from infra.tracking.uploader import send_waiting
from tests.support.stored_runs import curve, logged, runs, wait_until, waiting_files

if TYPE_CHECKING:
    from tests.support.tracking_stores import Server

pytest_plugins = ["tests.support.tracking_stores"]
ROOT = Path(__file__).resolve().parents[1]


def forget_what_was_sent(folder: Path) -> None:
    """Leave a folder as a kill between the store's commit and its answer leaves it."""
    (sent,) = folder.glob(".tracking/*/sent.json")
    sent.unlink()


def test_a_lost_answer_doubles_nothing(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """Everything sent a second time, the run's creation too, leaves the store as it was."""
    run = begin(params={"lr": 1})
    for step in range(1500):
        run.log_metrics({"loss": math.nan if step == 5 else step}, step)
    run.log_metrics({"kept": 3})
    run.log_dataset("lsdir", "ab" * 32, "/data/lsdir")
    run.close("FAILED")
    forget_what_was_sent(tmp_path / "run")

    assert send_waiting(tmp_path / "run") == 0
    (stored,) = runs(store)
    assert [step for step, _ in curve(store, stored.info.run_id)] == list(range(1500))
    assert curve(store, stored.info.run_id, "kept") == [(0, 3)]
    assert len(stored.inputs.dataset_inputs) == 1
    assert stored.info.status == "FAILED"


def test_a_power_cut_hides_no_later_record(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """Records that take the place of sent ones, lost from the disk, are sent as well."""
    log = tmp_path / "run" / "log.jsonl"
    run = begin()
    start = log.stat().st_size
    run.log_metrics({"loss": 0.0, "x" * 200: 0.0}, 0)
    run.close("FAILED")
    os.truncate(log, start)
    with begin() as again:
        again.log_metrics({"loss": 1.0}, 1)
    (stored,) = runs(store)

    assert curve(store, stored.info.run_id) == [(0, 0.0), (1, 1.0)]


def test_damaged_lines_keep_no_other_from_the_store(
    store: MlflowClient,
    begin: Callable[..., Run],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever is broken, the start and what was sent too, the rest arrives and nothing twice."""
    first = begin(params={"lr": 1})
    for step in range(4):
        first.log_metrics({"loss": step}, step)
    first.close("FAILED")
    log = tmp_path / "run" / "log.jsonl"
    lines = log.read_bytes().splitlines()
    lines[0] = lines[0].replace(b'"token"', b'"tokem"')
    odd = [b"7", b"[1]", b"\xff\x00", b'{"params": 3}', b'{"time": "x"}', b'{"step": 1}', b"{}"]
    log.write_bytes(b"\n".join([*lines, *odd, b'{"time": 1, "step": 9, "loss": "high"}', b""]))
    (sent,) = (tmp_path / "run").glob(".tracking/*/sent.json")
    sent.write_bytes(b"\x00" * 40)
    with begin(resume=Resume(first.token, 3)) as second:
        second.log_metrics({"loss": 4}, 4)
    (stored,) = runs(store)

    assert curve(store, stored.info.run_id) == [(step, float(step)) for step in range(5)]
    assert stored.data.params == {"lr": "1"}
    assert stored.info.status == "FINISHED"
    assert "damaged line; all others are sent" in capsys.readouterr().err
    with pytest.raises(UsageError, match="nothing here waits"):
        send_waiting(tmp_path / "run")


def test_what_the_store_refuses_is_kept(
    store: MlflowClient,
    begin: Callable[..., Run],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Someone deletes the run in mid-job: the job ends well, its records stay and that is told."""
    run = begin(params={"lr": 1})
    wait_until(lambda: run.run_id is not None and bool(store.get_run(run.run_id).data.params))
    store.delete_run(run.run_id)
    run.log_metrics({"loss": 0.0}, 0)
    run.close()

    assert logged(tmp_path / "run") == [(0, 0.0)]
    told = capsys.readouterr().err
    assert told.count("not sent again, but kept") == 2  # the loss, and how the run ended


def test_a_store_that_is_away_delays_only(
    begin: Callable[..., Run],
    come_back: Callable[[], MlflowClient],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The job runs, ends and is warned once; its records are sent later, with their own times."""
    attempts: list[str] = []
    real = RunInStore.begin

    def counted(self: RunInStore, start: Mapping[str, Any]) -> None:
        attempts.append(start["token"])
        real(self, start)

    monkeypatch.setattr(RunInStore, "begin", counted)
    folder = tmp_path / "run's folder"
    (tmp_path / "report.html").write_text("<h1>Report</h1>")
    with begin(folder=folder, params={"lr": 1}) as run:
        for step in range(20):
            run.log_metrics({"loss": step}, step)
        run.log_artifact(tmp_path / "report.html")
        wait_until(lambda: len(attempts) > 1)
    ended = time.time() * 1000
    told = capsys.readouterr().err

    assert run.run_id is None
    assert "23 records and 1 files wait" in told
    assert told.count("the job goes on") == 1
    assert told.count("python -m infra.tracking '") == 1  # the quotes, for the space in the name
    assert "Traceback" not in told
    assert send_waiting(folder) == 1

    client = come_back()
    assert send_waiting(folder) == 0
    (stored,) = runs(client)
    assert stored.info.status == "FINISHED"
    assert stored.info.end_time <= ended
    assert len(curve(client, stored.info.run_id)) == 20
    assert [file.path for file in client.list_artifacts(stored.info.run_id)] == ["report.html"]
    with pytest.raises(UsageError, match="nothing here waits"):
        send_waiting(folder)


def test_a_run_that_another_followed_is_sent_too(
    begin: Callable[..., Run], come_back: Callable[[], MlflowClient], tmp_path: Path
) -> None:
    """Two runs of one folder: neither takes the other's place in the store, or its records."""
    for rate in (1, 2):
        with begin(params={"lr": rate}, resume=Resume(None, -1)) as run:
            run.log_metrics({"loss": rate}, 0)
    assert logged(tmp_path / "run") == [(0, 2)]
    client = come_back()

    assert send_waiting(tmp_path / "run") == 0
    assert sorted(stored.data.params["lr"] for stored in runs(client)) == ["1", "2"]
    assert sorted(stored.data.metrics["loss"] for stored in runs(client)) == [1, 2]


def test_a_run_that_another_followed_is_resumed(
    begin: Callable[..., Run], come_back: Callable[[], MlflowClient], tmp_path: Path
) -> None:
    """Its log comes back with it, and what had waited in there is sent."""
    first = begin(params={"lr": 1})
    first.log_metrics({"loss": 1.0}, 0)
    first.close("KILLED")
    begin(params={"lr": 2}).close()
    client = come_back()
    with begin(resume=Resume(first.token, 0)) as again:
        again.log_metrics({"loss": 2.0}, 1)
    (stored,) = runs(client)

    assert stored.data.params["lr"] == "1"
    assert curve(client, stored.info.run_id) == [(0, 1.0), (1, 2.0)]


def test_a_run_to_continue_may_be_out_of_reach(
    begin: Callable[..., Run],
    come_back: Callable[[], MlflowClient],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A job told to continue a run starts though the store cannot be asked for it."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with begin() as run:
        run.log_metrics({"loss": 1.0}, 0)

    assert "4 records and 0 files wait" in capsys.readouterr().err


def test_a_store_that_hangs_holds_nobody(
    begin: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A server that never answers a request: everything is kept, and closing is bounded."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        run = begin()
        accepted, _ = silent.accept()  # the request is under way, and stays so
        for step in range(1000):
            run.log_metrics({"loss": step}, step)
        run.close(patience=0.1)
        with pytest.raises(UserError, match="another process"):  # its thread may still send
            send_waiting(tmp_path / "run")
        accepted.close()

    assert "1003 records and 0 files wait" in capsys.readouterr().err
    assert logged(tmp_path / "run") == [(step, step) for step in range(1000)]


def test_a_full_disk_does_not_stop_the_job(
    store: MlflowClient,
    begin: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Records wait in memory while the disk is full; the person is told once."""
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if b'"loss"' in data:
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
import time
from pathlib import Path
from infra.tracking.record import Resume
from infra.tracking.run import start_run

folder, last_step, end = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
resume = Resume(None, last_step)
with start_run("latent-pmrf/test", folder=folder, params={"lr": 1}, resume=resume) as run:
    for step in range(last_step + 1, end):
        run.log_metrics({"loss": step}, step)
        sys.stdout.write(f"{step}\\n")
        sys.stdout.flush()
        if last_step < 0 and step >= 300:
            time.sleep(0.01)  # or there are a hundred thousand steps when something has been sent
"""


def test_a_killed_process_loses_no_metric(store: MlflowClient, tmp_path: Path) -> None:
    """SIGKILL in mid-run, and again while the log is cut: the third process makes it whole.

    Every step is in the log once, and in the store once.
    """
    folder = tmp_path / "run"
    (tmp_path / "job.py").write_text(JOB)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    job = ["job", str(folder)]
    with subprocess.Popen(
        [sys.executable, "-m", *job, "-1", "10000000"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        recorded = -1
        for line in process.stdout:
            recorded = int(line)
            if recorded == 300:
                wait_until(lambda: any(folder.glob(".tracking/*/sent.json")))
                process.kill()
    job += [str(recorded - 50), str(recorded + 100)]
    kill = ["tests.support.signalled", "SIGKILL", "1", "os.rename *.log.jsonl*.partial"]
    cut = subprocess.run([sys.executable, "-m", *kill, *job], env=environment, check=False)
    assert cut.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-m", *job], env=environment, check=True, capture_output=True)
    (stored,) = runs(store)

    expected = [(step, step) for step in range(recorded + 100)]
    assert stored.info.status == "FINISHED"
    assert logged(folder) == expected
    assert curve(store, stored.info.run_id) == expected


@pytest.mark.slow
def test_a_server_that_dies_loses_no_metric(
    server: "Server",
    store: MlflowClient,
    begin: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed in mid-run, then answering 503, then well again: it has every step once.

    The job never waits for it.
    """
    told: list[str] = []

    def has_told(text: str) -> bool:
        told.append(capsys.readouterr().err)
        return text in "".join(told)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    server.start()
    run = begin(params={"lr": 1})
    for step in range(400):
        if step == 100:
            wait_until(lambda: run.run_id is not None)
            server.kill()
        if step == 200:  # steps 100 to 199 were recorded with no server there to answer
            wait_until(lambda: has_told("the job goes on"))
        if step == 300:
            with server.unavailable() as asked:
                wait_until(lambda: len(asked) > 0)
            server.start()
        run.log_metrics({"loss": step, "lr": 1e-4}, step)
    run.log_image("grid", np.zeros((32, 32, 3), np.uint8), 399)
    run.close("FINISHED", patience=120)
    has_told("")
    (stored,) = runs(store)

    assert waiting_files(tmp_path / "run") == []
    assert run.where().startswith(f"{server.uri}/#/experiments/")
    assert stored.info.status == "FINISHED"
    assert curve(store, stored.info.run_id) == [(step, step) for step in range(400)]
    assert len(curve(store, stored.info.run_id, "lr")) == 400
    assert len(list((tmp_path / "artifacts").rglob("grid+step+399+*"))) == 2
    assert "".join(told).count("the job goes on") == 1
