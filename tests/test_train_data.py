"""What a run reads, writes and records on its way changes nothing that it learns."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient

from tests.support.training_sets import assert_equal, log, saved_weights, write_latent_set

if TYPE_CHECKING:
    from tests.support.trainers_here import Train

pytest_plugins = ["tests.support.trainers_here", "tests.support.tracking_stores"]


def losses(output: Path) -> list[float]:
    """Return the training loss of every step."""
    return [line["train/loss"] for line in log(output) if "train/loss" in line]


def test_an_unreadable_sample_is_skipped_within_the_budget_and_stops_the_run_beyond(
    command: "list[str | Path]", train: "Train", tmp_path: Path
) -> None:
    """Its shard and its key are named; skipped, it is counted in the log."""
    latents = write_latent_set(tmp_path / "set")
    tar = bytearray((latents / "train-000000.tar").read_bytes())
    where = tar.index(b"train5.source_0.npy")
    tar[where : where + 6] = b"other5"
    (latents / "train-000000.tar").write_bytes(tar)
    run = [*command, "--max-steps", "100", "--log-every", "4", "--latents", latents]
    ended = train([*run, "--skip-budget", "2"], tmp_path / "run")  # two steps an epoch
    said = "train-000000.tar: something else is where the pair table has train5"

    assert ended.code == 1
    assert said in ended.said.partition("error: ")[2]
    assert "skip_budget is 2" in ended.said
    assert log(tmp_path / "run")[-1]["step"] == 4
    assert max(line.get("data/skipped", 0) for line in log(tmp_path / "run")) == 2


def test_a_cache_is_all_that_is_read_twice(
    command: "list[str | Path]", train: "Train", finished: Path, tmp_path: Path
) -> None:
    """It changes nothing; a second run finds every pair of the first there, and reads no shard."""
    copy = shutil.copytree(command[command.index("--latents") + 1], tmp_path / "set")
    run = [*command, "--latents", copy, "--cache", tmp_path / "cache"]
    assert train(run, tmp_path / "first").code == 0
    for tar in copy.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    assert train(run, tmp_path / "second").code == 0

    assert log(tmp_path / "first") == log(finished)
    assert log(tmp_path / "second") == log(finished)


def test_saving_changes_nothing(
    command: "list[str | Path]", train: "Train", finished: Path, tmp_path: Path
) -> None:
    """A run that saves and validates at other steps has the same losses and ends the same."""
    often = ["--save-every", "1", "--validate-every", "16"]
    assert train([*command, *often], tmp_path / "run").code == 0

    assert losses(tmp_path / "run") == losses(finished)
    for name in ("model", "ema-0.99"):
        assert_equal(saved_weights(tmp_path / "run", 8, name), saved_weights(finished, 8, name))


def test_a_resumed_run_is_one_run_in_mlflow(
    command: "list[str | Path]",
    train: "Train",
    finished: Path,
    tmp_path: Path,
    store: MlflowClient,
) -> None:
    """Settings, data and every step's loss are in one run, whichever process recorded them."""
    for steps in ("6", "8"):
        assert train([*command, "--max-steps", steps, "--track"], tmp_path / "run").code == 0
    experiment = store.get_experiment_by_name("latent-pmrf/flow")
    (run,) = store.search_runs([experiment.experiment_id])
    points = store.get_metric_history(run.info.run_id, "train/loss")
    (data,) = run.inputs.dataset_inputs

    assert run.info.status == "FINISHED"
    assert run.data.params["engine.global_batch_size"] == "4"
    assert data.dataset.name == "set"
    stored = [value for _, value in sorted((point.step, point.value) for point in points)]
    assert stored == losses(finished)
