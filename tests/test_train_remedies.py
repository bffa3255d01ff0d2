"""What a trainer's refusal advises is what the same command accepts."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.training_sets import write_image_set

if TYPE_CHECKING:
    from tests.support.trainers_here import Train

pytest_plugins = ["tests.support.trainers_here"]
SHORT = ["--max-steps", "1", "--workers", "0"]


def test_never_resuming_goes_on_beside_or_without_the_checkpoints(
    command: list[str | Path], train: "Train", eight: Path
) -> None:
    """Another output, or the checkpoints moved away."""
    never = [*command, *SHORT, "--resume", "never"]
    ended = train(never, eight)
    assert ended.code == 2
    assert "give another --output, or move them away" in ended.said
    assert train(never, eight.parent / "another").code == 0
    shutil.move(eight / "checkpoints", eight.parent / "away")
    assert train(never, eight).code == 0


def test_every_model_that_a_refusal_names_is_one(
    command: list[str | Path], train: "Train", tmp_path: Path
) -> None:
    """The list is the table; the one for these latents trains, the others say what they are for."""
    ended = train([*command, *SHORT, "--model", "nothing"], tmp_path / "run")
    (listed,) = re.findall(r"choose one of ([\w, -]+)", ended.said)
    said = {
        name: train([*command, *SHORT, "--model", name], tmp_path / name)
        for name in listed.split(", ")
    }

    assert said["tiny"].code == 0
    for name, ended in said.items():
        is_other = f"--model {name} has" in ended.said and "choose the model for this" in ended.said
        assert (ended.code == 0) != is_other


def test_a_loss_without_its_network_trains_as_advised(
    train: "Train", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without VGG19's weights the refusal offers --perceptual 0."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    images = write_image_set(tmp_path / "images", size=32)
    tiny = ["--preset", "tiny", "--model", "tiny", "--crop", "16", "--global-batch-size", "4"]
    vae = ["trainers.vae", *tiny, *SHORT, "--data", images]
    ended = train([*vae, "--perceptual", "0.5"], tmp_path / "run")
    assert ended.code == 1
    assert "or train with --perceptual 0" in ended.said
    assert train([*vae, "--perceptual", "0"], tmp_path / "run").code == 0


@pytest.mark.parametrize(
    ("refused", "said", "advised"),
    [
        (["--micro-batch-size", "3"], "choose sizes that divide", ["--micro-batch-size", "2"]),
        (["--local-rank", "3"], "leave the option out", []),
        (
            ["--peak-from", "4", "1", "3", "1"],
            "each step once, in order",
            ["--peak-from", "3", "1"],
        ),
        (["--lpips", "x"], "give --images", []),
        (["--dists", "x"], "give --images", []),
    ],
)
def test_an_option_that_cannot_be_is_replaced_as_advised(
    command: list[str | Path],
    train: "Train",
    tmp_path: Path,
    refused: list[str],
    said: str,
    advised: list[str],
) -> None:
    """Before anything is written."""
    ended = train([*command, *SHORT, *refused], tmp_path / "run")
    assert ended.code == 2
    assert said in ended.said
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert train([*command, *SHORT, *advised], tmp_path / "run").code == 0
