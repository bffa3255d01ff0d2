"""A set is finished when everything that was promised is there; a rerun completes what is not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from datasets import shards
from infra import storage
from infra.tracking.run import Run
from pipelines.curate import job, report
from pipelines.jobs.folder import SetFolder
from tests.conftest import PATIENCE, picture
from tests.support.curation_jobs import published, run

pytest_plugins = ["tests.support.tracking_stores"]


class KilledError(BaseException):
    """Stands for a SIGKILL: nothing of the job catches it."""


def struck(real: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    """Return a function that dies before it does its work, or after."""

    def call(*arguments: Any, **options: Any) -> None:
        if after:
            real(*arguments, **options)
        raise KilledError

    return call


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(2):
        picture(number, 160, 128).save(folder / f"photo-{number}.png")
    return folder


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the bytes of the undisturbed set."""
    output = tmp_path_factory.mktemp("undisturbed") / "set"
    run(source, output)
    return published(output)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (job.Curation, "stage_manifest"),
        (job.Curation, "_save_listing"),
        (shards, "publish"),
        (report, "build"),
        (job.Curation, "report"),
        (SetFolder, "_mark_finished"),
    ],
)
def test_a_kill_at_any_step_is_completed_by_the_next_run(
    source: Path, expected: dict[str, bytes], tmp_path: Path, owner: Any, name: str, after: bool
) -> None:
    """Set and page are those of an undisturbed job; what was packed and published stays."""
    output = tmp_path / "set"
    run(source, output, threshold=45.0)  # another cut, whose page must not stay
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, struck(getattr(owner, name), after=after))
        with pytest.raises(KilledError):
            run(source, output)
    again = run(source, output)

    assert again.units == []
    assert published(output) == expected
    assert "≤ 60" in (output / "report.html").read_text()
    before = (output / "report.html").stat().st_mtime_ns
    run(source, output)
    assert (output / "report.html").stat().st_mtime_ns == before


def test_a_page_that_is_gone_comes_back(source: Path, tmp_path: Path) -> None:
    """Nothing is computed for it."""
    run(source, tmp_path / "set")
    (tmp_path / "set" / "report.html").unlink()

    assert run(source, tmp_path / "set").units == []
    assert (tmp_path / "set" / "report.html").exists()


def died(tracked: Run, *_: object) -> None:
    """End the thread that sends, as the death of its process does, and record nothing of an end."""
    assert tracked._uploader is not None
    tracked._uploader.close(PATIENCE)


def test_a_run_that_was_killed_on_the_way_to_mlflow_is_recorded_once(
    source: Path, tmp_path: Path, store: MlflowClient
) -> None:
    """Whatever the kill cut off, there is one run for each set, it is finished and has the page."""
    points = [(Run, "log_dataset", False), (Run, "close", False), (Run, "close", True)]
    for number, (owner, name, after) in enumerate(points):
        output = tmp_path / f"set-{number}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "__exit__", died)
            patch.setattr(owner, name, struck(getattr(owner, name), after=after))
            with pytest.raises(KilledError):
                run(source, output, track=True)
        assert run(source, output, track=True).units == []
        assert run(source, output, track=True).units == []
    run(source, tmp_path / "set-3")
    assert run(source, tmp_path / "set-3", track=True).units == []  # untracked before
    (experiment,) = store.search_experiments(filter_string="name = 'latent-pmrf/curate'")
    runs = store.search_runs([experiment.experiment_id])

    assert sorted(r.info.run_name for r in runs) == [f"set-{number}" for number in range(4)]
    for found in runs:
        assert found.info.status == "FINISHED"
        digest = storage.sha256(tmp_path / found.info.run_name / shards.MANIFEST)
        (data,) = found.inputs.dataset_inputs
        assert digest.startswith(data.dataset.digest)
        paths = {artifact.path for artifact in store.list_artifacts(found.info.run_id)}
        assert {"report.html", "manifest.json"} <= paths
