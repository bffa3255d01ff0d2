"""Runs arrive in MLflow whole and once: real stores, a real server that dies, real signals."""

import contextlib
import errno
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from infra.delivery import deliver
from infra.errors import UsageError
from infra.mlflow_store import TOKEN_TAG
from infra.tracking import Outcome, Run, start_run

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "latent-pmrf/test"


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


def runs(client: MlflowClient) -> list[Any]:
    """List the experiment's runs, oldest first."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return client.search_runs([experiment.experiment_id], order_by=["start_time"])


def curve(client: MlflowClient, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    """Read every stored point of a metric, by step."""
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))


def closed(run: Run, status: str = "FINISHED") -> Outcome:
    """Close a run that this process records."""
    outcome = run.close(status)
    assert outcome is not None
    return outcome


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


def test_a_run_holds_what_was_recorded(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """Parameters, tags, curves, data, report and picture are there; nothing stays behind."""
    (tmp_path / "report.html").write_text("<h1>Report</h1>")
    with begin(name="demo", params={"model": {"width": 128}, "note": "x" * 9000}) as run:
        for step in range(50):
            run.log_metrics({"loss": 1 / (step + 1), "train/lr%": 1e-4}, step)
        run.set_tags({"quality": "good"})
        run.log_dataset("lsdir", "ab" * 32, "/data/lsdir", "training")
        run.log_artifact(tmp_path / "report.html")
        run.log_image("val/grid", np.zeros((64, 128, 3), np.uint8), 10)
    (stored,) = runs(store)

    assert run.outcome is not None
    assert (run.outcome.records, run.outcome.files, run.outcome.run_id) == (
        0,
        0,
        stored.info.run_id,
    )
    assert (stored.info.run_name, stored.info.status) == ("demo", "FINISHED")
    assert stored.data.params["model.width"] == "128"
    assert stored.data.params["note"].endswith("(cut from 9000 characters)")
    assert {
        **stored.data.tags,
        "quality": "good",
        "mlflow.loggedImages": "True",
    } == stored.data.tags
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
    assert list((tmp_path / "journal").iterdir()) == []


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


def test_the_machine_is_measured(store: MlflowClient, begin: Callable[..., Run]) -> None:
    """System metrics arrive under the names that MLflow's page of them looks for."""
    with begin(system_metrics=True):
        time.sleep(1.3)  # the first sample is taken after a second
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
            time.sleep(10)

    with pytest.raises(SystemExit, match="143"):
        job()
    (stored,) = runs(store)

    assert stored.info.status == "KILLED"
    assert curve(store, stored.info.run_id) == [(0, 1.0)]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_job_may_handle_sigterm_itself(store: MlflowClient, begin: Callable[..., Run]) -> None:
    """A trainer that saves on SIGTERM and leaves its loop is heard first, and its run is KILLED."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with begin():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    (stored,) = runs(store)

    assert seen == [signal.SIGTERM]
    assert stored.info.status == "KILLED"


def test_other_ranks_are_silent(
    begin: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run off rank 0 takes everything, writes nothing and reaches no store."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with begin(params={"a": 1}, system_metrics=True) as run:
        run.log_metrics({"loss": 1.0}, 0)
        run.log_artifact(tmp_path / "absent")
        run.log_image("grid", np.zeros((8, 8, 3), np.uint8), 0)

    assert (run.run_id, run.outcome, run.token) == (None, None, "")
    assert not (tmp_path / "journal").exists()


def test_a_killed_run_is_continued(store: MlflowClient, begin: Callable[..., Run]) -> None:
    """The same job goes on with its run; steps done again keep their first value."""
    first = begin(params={"lr": 1})
    for step in range(10):
        first.log_metrics({"loss": step}, step)
    first.log_metrics({"kept": 1})
    closed(first, "KILLED")
    with begin(params={"lr": 1}) as second:
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


def test_another_job_is_another_run(store: MlflowClient, begin: Callable[..., Run]) -> None:
    """Other parameters, or a run that finished, make a new run."""
    closed(begin(params={"lr": 1}), "FAILED")
    closed(begin(params={"lr": 2}))
    closed(begin(params={"lr": 2}))

    assert [run.data.params["lr"] for run in runs(store)] == ["1", "2", "2"]


def test_a_checkpoint_knows_its_run(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """A token continues a run from another folder with other parameters, and the change is told."""
    first = begin(params={"lr": 1, "seed": 7})
    closed(first)
    closed(begin(folder=tmp_path / "elsewhere", token=first.token, params={"lr": 2, "seed": 7}))
    (stored,) = runs(store)

    assert stored.data.params == {"lr": "1", "seed": "7"}
    assert stored.data.tags["changed.lr"] == "1 -> 2"
    assert "changed.seed" not in stored.data.tags
    assert stored.data.tags[TOKEN_TAG] == first.token


def test_mlflows_own_variables_are_honoured(
    store: MlflowClient, begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLFLOW_EXPERIMENT_NAME names the experiment, MLFLOW_RUN_ID the run to go on with."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    experiment = store.create_experiment("theirs")
    theirs = store.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
    with begin() as run:
        run.log_metrics({"loss": 1.0}, 0)

    assert run.run_id == theirs
    assert [found.info.run_id for found in store.search_runs([experiment])] == [theirs]
    assert curve(store, theirs) == [(0, 1.0)]


def test_an_unknown_run_id_is_refused(
    begin: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that the store does not know is told before the job starts."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)

    with pytest.raises(UsageError, match="no such run"):
        begin()
    assert not (tmp_path / "journal").exists()


def test_a_lost_answer_doubles_nothing(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """Everything sent a second time, the run's creation too, leaves the store as it was."""
    run = begin(params={"lr": 1})
    for step in range(1500):
        run.log_metrics({"loss": math.nan if step == 5 else step}, step)
    run.log_dataset("lsdir", "ab" * 32, "/data/lsdir")
    folder = closed(run, "FAILED").folder
    (folder / "sent.json").unlink()  # as if killed between the store's commit and its answer

    assert deliver(tmp_path / "journal") == 0
    (stored,) = runs(store)
    assert [step for step, _ in curve(store, stored.info.run_id)] == list(range(1500))
    assert len(stored.inputs.dataset_inputs) == 1
    assert stored.info.status == "FAILED"


def test_a_store_that_is_away_delays_only(
    begin: Callable[..., Run],
    come_back: Callable[[], MlflowClient],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The job runs, ends and is warned once; its records are sent later, with their own times."""
    (tmp_path / "report.html").write_text("<h1>Report</h1>")
    with begin(params={"lr": 1}) as run:
        for step in range(20):
            run.log_metrics({"loss": step}, step)
        run.log_artifact(tmp_path / "report.html")
        time.sleep(2.5)  # more than one attempt
    ended = time.time() * 1000
    told = capsys.readouterr().err

    assert run.outcome is not None
    assert (run.outcome.run_id, run.outcome.records, run.outcome.files) == (None, 23, 1)
    assert told.count("the job goes on") == 1
    assert told.count("infra.delivery") == 1
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
from infra.tracking import start_run

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


@pytest.fixture
def server(store: MlflowClient, tmp_path: Path) -> Iterator["Server"]:
    """A real tracking server on the test's store."""
    server = Server(tmp_path)
    yield server
    server.kill()


class Server:
    """``mlflow server`` on a free port, started and killed at will."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        store = ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        artifacts = ["--artifacts-destination", str(self._folder / "artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self.port), *store, *artifacts],
                cwd=self._folder,
                env={**os.environ, **quiet},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise AssertionError((self._folder / "server.log").read_text())

    def kill(self) -> None:
        """Kill the server and its workers, as a lost machine would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def test_a_server_that_dies_loses_no_metric(
    server: Server,
    store: MlflowClient,
    begin: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed in mid-run and started again, it has every step once; the job never waited for it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    server.start()
    with begin(params={"lr": 1}) as run:
        for step in range(300):
            if step == 100:
                while run.run_id is None:
                    time.sleep(0.05)
                server.kill()
            if step == 200:  # steps 100 to 199 were recorded with no server there to answer
                server.start()
            run.log_metrics({"loss": step, "lr": 1e-4}, step)
            time.sleep(0.02)
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


def test_mlflow_is_imported_only_for_a_run() -> None:
    """Importing our module takes no second: MLflow is not loaded with it."""
    probe = "import sys, infra.tracking; sys.exit('mlflow' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=False).returncode == 0
