"""Where a run begins and ends: past its end, changed on the way, forked, with other weights."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from models.checkpoint import load_checkpoint
from tests.support.training_sets import assert_equal, digests, log
from tests.support.training_sets import saved_weights as weights

if TYPE_CHECKING:
    from tests.support.trainers_here import Ended, Train

pytest_plugins = ["tests.support.trainers_here", "tests.support.tracking_stores"]


def assert_refused(ended: "Ended", *parts: str) -> None:
    """Assert an error of usage that says these things."""
    assert ended.code == 2, ended.said
    for part in parts:
        assert part in ended.said


def test_a_last_step_below_the_checkpoints_is_refused_and_nothing_is_touched(
    command: list[str | Path], train: "Train", eight: Path
) -> None:
    """One zero too few in --max-steps names both steps, and leaves every file as it was."""
    before = digests(eight)
    assert_refused(
        train([*command, "--max-steps", "3", "--keep-last", "1"], eight),
        "--max-steps 3, but",
        "has 8 steps already: give --max-steps 8 or more",
    )

    assert digests(eight) == before


def test_the_advised_last_step_is_complete_already(
    command: list[str | Path], train: "Train", eight: Path
) -> None:
    """The run ends at once with code 0, and its checkpoints and its log stay as they were."""
    before, numbers = digests(eight / "checkpoints"), log(eight)
    ended = train([*command, "--max-steps", "8", "--keep-last", "1"], eight)

    assert ended.code == 0
    assert "complete already: 8 of 8 steps" in ended.said
    assert digests(eight / "checkpoints") == before
    assert log(eight) == numbers


def test_other_intervals_after_a_resume_are_met(
    command: list[str | Path], train: "Train", eight: Path
) -> None:
    """Saves, validations and the end come at the new intervals' steps, whatever the old were."""
    every = ["--log-every", "5", "--validate-every", "3", "--save-every", "5"]
    ended = train([*command, *every, "--max-steps", "11"], eight)
    steps = {"train/loss": [1, 2, 3, 4, 5, 6, 7, 8, 10, 11], "val/loss": [0, 4, 8, 9, 11]}

    assert ended.code == 0
    for name, expected in steps.items():
        assert [line["step"] for line in log(eight) if name in line] == expected
    assert sorted(path.name for path in (eight / "checkpoints").iterdir())[-2:] == [
        "step-00000010",
        "step-00000011",
    ]


def test_another_configuration_goes_on_by_each_remedy_that_its_refusal_advises(
    command: list[str | Path], train: "Train", eight: Path
) -> None:
    """The saved configuration goes on; another output begins; --peak-from changes the rate."""
    longer = [*command, "--max-steps", "10"]
    refused = train([*longer, "--peak", "0.001", "--gradient-clipping", "0.5"], eight)
    assert_refused(
        refused,
        "schedule.peak: 0.002 -> 0.001",
        f"--config {eight}/config.json",
        "another --output, where a run begins without --resume",
        "--peak-from 8 0.001 changes the peak from here on",
        "--clipping-from 8 0.5 changes the clipping from here on",
    )

    other = train([*command, "--max-steps", "1", "--peak", "0.001"], eight.parent / "other")
    assert other.code == 0
    assert train(["trainers.flow", "--config", eight / "config.json"], eight).code == 0
    assert (
        train([*longer, "--peak-from", "8", "0.001", "--clipping-from", "8", "0.5"], eight).code
        == 0
    )


def test_a_change_at_a_step_is_a_function_of_the_step(
    command: list[str | Path], train: "Train", eight: Path
) -> None:
    """A run changed when it was resumed equals one that knew of the change from its start."""
    changes = ["--peak-from", "8", "0.0005", "--clipping-from", "8", "0.01", "--skip-steps", "9"]
    longer = [*command, *changes, "--max-steps", "12"]
    resumed, unbroken = train(longer, eight), train(longer, eight.parent / "unbroken")
    config = json.loads((eight / "config.json").read_bytes())
    rates = {
        line["step"]: line["train/learning_rate"] for line in log(eight) if "train/loss" in line
    }

    assert (resumed.code, unbroken.code) == (0, 0)
    assert log(eight) == log(eight.parent / "unbroken")
    assert_equal(weights(eight, 12), weights(eight.parent / "unbroken", 12))
    assert config["changes"]["peak_from"] == [[8, 0.0005]]
    assert rates[9] == pytest.approx(0.0005 * 8 / 50 + 0, rel=1e-6)  # still warming up
    assert "step 9 is left out, by --skip-steps" in resumed.said


def test_what_was_before_the_checkpoint_cannot_be_changed(
    command: list[str | Path], train: "Train", eight: Path
) -> None:
    """A change of an earlier step, or one that is forgotten, is refused with what to do."""
    early = train([*command, "--max-steps", "12", "--peak-from", "7", "0.001"], eight)
    assert_refused(early, "changes.peak_from: [] -> [[7, 0.001]]", "steps before 8")
    assert train([*command, "--max-steps", "12", "--peak-from", "9", "0.001"], eight).code == 0
    forgotten = train([*command, "--max-steps", "16"], eight)
    assert_refused(forgotten, "repeat the --peak-from of steps before 12, and add later ones")
    advised = ["--peak-from", "9", "0.001", "12", "0.0001"]
    assert train([*command, "--max-steps", "16", *advised], eight).code == 0


def test_a_peak_below_the_floor_is_refused_before_anything_is_read(
    command: list[str | Path], train: "Train", tmp_path: Path
) -> None:
    """The message names the lowest peak, and that one is taken."""
    low = train([*command, "--peak-from", "3", "1e-6"], tmp_path / "run")
    assert_refused(low, "--peak-from 3 1e-06", "give a peak of at least 1e-05")

    assert not (tmp_path / "run").exists()
    assert train([*command, "--peak-from", "3", "1e-5"], tmp_path / "run").code == 0


def test_a_fork_is_a_run_of_its_own(
    command: list[str | Path], train: "Train", eight: Path, store: MlflowClient
) -> None:
    """Points, status, model, parameters and command are its own; the parent stays as it was.

    MLflow shows the parent and the step, and the registered versions have their metrics.
    """
    assert train([*command, "--track"], eight.parent / "parent").code == 0
    fork = [*command, "--track", "--max-steps", "6", "--resume"]
    first = eight.parent / "parent" / "checkpoints" / "step-00000004"
    ended = train([*fork, first], eight.parent / "fork")
    (experiment,) = [one for one in store.search_experiments() if one.name == "latent-pmrf/flow"]
    child, parent = store.search_runs([experiment.experiment_id])
    points = {
        one.info.run_name: [
            point.step for point in store.get_metric_history(one.info.run_id, "train/loss")
        ]
        for one in (child, parent)
    }
    versions = store.search_model_versions("name = 'latent-pmrf-flow'")
    tags = {version.run_id: version.tags for version in versions}

    assert "forked from" in ended.said
    assert ended.code == 0, ended.said
    assert points == {"fork": [5, 6], "parent": [1, 2, 3, 4, 5, 6, 7, 8]}
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert (parent.data.params["loop.max_steps"], child.data.params["loop.max_steps"]) == ("8", "6")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["parent.step"] == "4"
    assert child.data.tags["parent.folder"] == str(first)
    assert not any("parent" in name for name in parent.data.tags)
    assert child.data.tags["mlflow.runName"] == "fork"
    for one in (child, parent):
        (validated,) = store.get_metric_history(one.info.run_id, "val/loss")[-1:]
        assert float(tags[one.info.run_id]["val.loss"]) == validated.value
    assert tags[child.info.run_id]["parent.step"] == "4"


def test_the_same_command_goes_on_with_a_fork(
    command: list[str | Path], train: "Train", eight: Path
) -> None:
    """A fork that has checkpoints goes on from those, and is to the bit the run that it left."""
    fork = [*command, "--resume", eight / "checkpoints" / "step-00000004"]
    assert train([*fork, "--max-steps", "6"], eight.parent / "fork").code == 0
    shutil.move(eight, eight.parent / "elsewhere")  # what is resumed needs no parent any more
    again = train(fork, eight.parent / "fork")

    assert again.code == 0, again.said
    assert "resumed from" in again.said
    assert_equal(weights(eight.parent / "fork", 8), weights(eight.parent / "elsewhere", 8))


def test_a_run_is_forked_by_its_folder(
    command: list[str | Path], train: "Train", eight: Path
) -> None:
    """Its newest checkpoint is taken; its own folder is what auto is."""
    fork = train([*command, "--max-steps", "9", "--resume", eight], eight.parent / "fork")
    own = train([*command, "--resume", eight], eight)

    assert f"forked from {eight}/checkpoints/step-00000008" in fork.said
    assert "complete already" in own.said


def test_an_older_checkpoint_is_not_resumed_below_newer_ones(
    command: list[str | Path], train: "Train", eight: Path
) -> None:
    """Else the newer ones would be kept as the newest. Each remedy goes through."""
    older = ["--resume", eight / "checkpoints" / "step-00000004"]
    before = digests(eight)
    assert_refused(train([*command, *older], eight), "later checkpoints, to step-00000008")
    assert digests(eight) == before
    assert train([*command, *older], eight.parent / "fork").code == 0
    assert train(command, eight).code == 0
    shutil.move(eight / "checkpoints" / "step-00000008", eight.parent / "aside")
    assert train([*command, *older], eight).code == 0
    assert_equal(weights(eight, 8), load_checkpoint(eight.parent / "aside" / "model")[1])


def test_a_folder_of_another_origin_is_not_mixed_into(
    command: list[str | Path], train: "Train", eight: Path
) -> None:
    """A run with checkpoints of its own does not take those of another; it goes on without."""
    other = eight.parent / "other"
    shutil.copytree(eight, other)
    assert_refused(train([*command, "--resume", eight], other), "did not begin there", "another")
    assert train(command, other).code == 0
