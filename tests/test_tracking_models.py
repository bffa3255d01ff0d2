"""A finished model is one version of a registered one, with its files, whatever happens between."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from infra.storage import sha256, write_bytes
from infra.tracking.models import FinishedModel
from infra.tracking.record import Resume
from infra.tracking.run import Run
from infra.tracking.uploader import send_waiting
from tests.support.finished_model import finished
from tests.support.stored_runs import runs, wait_until, waiting_files

if TYPE_CHECKING:
    from tests.support.tracking_stores import Server

pytest_plugins = ["tests.support.tracking_stores"]
ROOT = Path(__file__).resolve().parents[1]


def versions(client: MlflowClient) -> list[Any]:
    """List the versions, oldest first."""
    return sorted(client.search_model_versions("name = 'sim-vae'"), key=lambda one: one.version)


def downloaded(client: MlflowClient, version: Any, to: Path) -> Path:
    """Download a version's files by the registry's own address."""
    to.mkdir()
    return Path(
        mlflow.artifacts.download_artifacts(
            f"models:/{version.name}/{version.version}",
            dst_path=str(to),
            tracking_uri=client.tracking_uri,
            registry_uri=client._registry_uri,
        )
    )


def test_a_version_names_every_file(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """Its tags and its signature hold bytes and SHA-256 of what the registry hands out."""
    model = finished(tmp_path / "model")
    with begin() as run:
        run.log_model(model)
    assert_version_of(model, run, store, tmp_path)


def assert_version_of(model: FinishedModel, run: Run, store: MlflowClient, tmp_path: Path) -> None:
    """Assert that the one version is this model of this run, and names each of its files."""
    (version,) = versions(store)
    folder = downloaded(store, version, tmp_path / "downloaded")
    signature = json.loads((folder / "signature.json").read_bytes())

    assert (version.run_id, version.status) == (run.run_id, "READY")
    assert (version.tags["weights_sha256"], version.tags["step"]) == (model.digest, "200")
    assert version.tags["data.faces"] == "cd" * 32
    assert (signature["model"], signature["weights_sha256"]) == ("sim-vae", model.digest)
    assert [file["path"] for file in signature["files"]] == [
        "config.json",
        "parts/weights.safetensors",
    ]
    for file in signature["files"]:
        path, bytes_and_digest = folder / file["path"], (file["bytes"], file["sha256"])
        assert bytes_and_digest == (path.stat().st_size, sha256(path))
        assert version.tags[f"file.{file['path']}"] == "{} bytes, SHA-256 {}".format(
            *bytes_and_digest
        )
        assert file["sha256"] in version.description
    assert waiting_files(tmp_path / "run") == []


def test_mlflow_reads_the_shapes_and_no_loader(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """MLflow's own reader finds inputs and outputs; that it could load the model is not claimed."""
    with begin() as run:
        run.log_model(finished(tmp_path / "model"))
    folder = downloaded(store, versions(store)[0], tmp_path / "downloaded")
    read = Model.load(str(folder))

    assert [(one.name, one.shape) for one in read.signature.inputs] == [
        ("x_t", (-1, 4, 8, 8)),
        ("t", (-1,)),
    ]
    assert [one.name for one in read.signature.outputs] == ["velocity"]
    with pytest.raises(MlflowException, match="python_function"):
        mlflow.pyfunc.load_model(str(folder))


def test_a_store_that_is_away_gets_the_model_later(
    begin: Callable[..., Run], come_back: Callable[[], MlflowClient], tmp_path: Path
) -> None:
    """What was finished is what arrives, though its folder has changed meanwhile."""
    model = finished(tmp_path / "model")
    with begin() as run:
        run.log_model(model)
    write_bytes(model.folder / "config.json", b"another")
    assert len(waiting_files(tmp_path / "run")) == 4
    client = come_back()
    command = [sys.executable, "-m", "infra.tracking", str(tmp_path / "run")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (version,) = versions(client)

    assert runs(client)[0].info.status == "FINISHED"
    folder = downloaded(client, version, tmp_path / "downloaded")
    assert (folder / "config.json").read_bytes() == b'{"width": 8}'


def test_a_model_sent_twice_is_one_version(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """Neither a lost answer nor the same command, run again, makes a second one."""
    first = begin()
    first.log_model(finished(tmp_path / "model"))
    first.close("FAILED")
    (sent,) = (tmp_path / "run").glob(".tracking/*/sent.json")
    sent.unlink()  # as if killed between the store's commit and its answer
    assert send_waiting(tmp_path / "run") == 0
    with begin(resume=Resume(first.token)) as again:
        again.log_model(finished(tmp_path / "model"))

    assert len(versions(store)) == 1


def test_training_on_is_another_version(
    store: MlflowClient, begin: Callable[..., Run], tmp_path: Path
) -> None:
    """A run that goes on adds a version, and leaves the files of the first as they were."""
    with begin() as first:
        first.log_model(finished(tmp_path / "model"))
    with begin(resume=Resume(first.token)) as again:
        again.log_model(finished(tmp_path / "model", "ef" * 32, step=400))
    one, two = versions(store)
    folder = downloaded(store, one, tmp_path / "downloaded")

    assert (one.run_id, one.tags["step"], two.tags["step"]) == (two.run_id, "200", "400")
    assert (folder / "parts" / "weights.safetensors").read_bytes()[:4] == b"abab"


KILLED = """
import os, signal, sys
from pathlib import Path
from infra.tracking.store import RunInStore
from infra.tracking.run import start_run
from tests.support.finished_model import finished

add = RunInStore.add_model

def killed(self, model):
    if sys.argv[2] == "after":
        add(self, model)
    os.kill(os.getpid(), signal.SIGKILL)

RunInStore.add_model = killed
folder = Path(sys.argv[1])
with start_run("latent-pmrf/test", folder=folder / "run") as run:
    run.log_model(finished(folder / "model"))
"""


@pytest.mark.parametrize("moment", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_a_kill_around_the_registration_leaves_one_version(
    store: MlflowClient, tmp_path: Path, moment: str
) -> None:
    """SIGKILL when the files have arrived, or when the version has: sending makes it one."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), moment]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == -9
    assert len(versions(store)) == (moment == "after")

    assert send_waiting(tmp_path / "run") == 0
    (version,) = versions(store)
    folder = downloaded(store, version, tmp_path / "downloaded")
    assert (folder / "config.json").read_bytes() == b'{"width": 8}'


@pytest.mark.slow
def test_a_server_that_dies_gets_the_model_after_its_return(
    server: "Server",
    begin: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gone before the model is finished, and back after the run has ended.

    Through the server, too, its version names every file.
    """
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    server.start()
    model = finished(tmp_path / "model")
    with begin() as run:
        wait_until(lambda: run.run_id is not None)
        server.kill()
        run.log_model(model)
    server.start()
    assert send_waiting(tmp_path / "run") == 0

    assert_version_of(model, run, MlflowClient(tracking_uri=server.uri), tmp_path)


def test_a_store_that_refuses_models_keeps_the_run(
    store: MlflowClient,
    begin: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without permission to register, the run ends all the same, with the files in it."""

    def refuse(*arguments: object, **options: object) -> None:
        raise MlflowException("not yours", PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "create_model_version", refuse)
    with begin() as run:
        run.log_model(finished(tmp_path / "model"))
    (stored,) = runs(store)

    assert stored.info.status == "FINISHED"
    assert "not yours" in capsys.readouterr().err
    (folder,) = store.list_artifacts(stored.info.run_id)
    assert len(store.list_artifacts(stored.info.run_id, folder.path)) == 4


def test_a_full_disk_stops_nothing(
    store: MlflowClient,
    begin: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A model that cannot be copied is told, and stays where it is."""
    model = finished(tmp_path / "model")
    with begin() as run, monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        run.log_model(model)

    assert "sim-vae is not registered" in capsys.readouterr().err
    assert runs(store)[0].info.status == "FINISHED"
