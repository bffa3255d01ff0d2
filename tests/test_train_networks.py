"""A run keeps the frozen networks that its loss depends on, whatever their paths hold later."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra.errors import UsageError
from tests.support.training_sets import (
    SMOKE,
    digests,
    write_image_set,
    write_latent_set,
    write_predictor,
    write_regressor,
)
from trainers.loop.agreement import refuse_replaced_networks
from trainers.loop.checkpoints import Checkpoint

if TYPE_CHECKING:
    from tests.support.trainers_here import Train

pytest_plugins = ["tests.support.trainers_here"]
TINY = ["trainers.flow", *SMOKE, "--workers", "0", "--validate-every", "0"]
STEPS = "--max-steps"


def recorded(output: Path, step: int) -> dict[str, str]:
    """Return the networks of a checkpoint."""
    record = output / "checkpoints" / f"step-{step:08d}" / "record.json"
    networks: dict[str, str] = json.loads(record.read_bytes())["networks"]
    return networks


def test_a_network_that_was_replaced_in_place_is_refused(train: "Train", tmp_path: Path) -> None:
    """The path may change and the weights may not; the advised --init-from begins with others."""
    output, given = tmp_path / "run", write_regressor(tmp_path / "regressor", seed=1)
    latents = write_latent_set(tmp_path / "latents")
    command = [*TINY, "--latents", latents, "--source", "regressed", "--regressor"]
    assert train([*command, given, STEPS, "1"], output).code == 0
    moved = Path(shutil.copytree(given, tmp_path / "moved"))
    write_regressor(given, seed=2)
    refused = train([*command, given, STEPS, "2"], output)
    fork = train([*command, given, STEPS, "2", "--resume", output], tmp_path / "fork")
    resumed = train([*command, moved, STEPS, "2"], output)
    newest = output / "checkpoints" / "step-00000002"
    tuned = [*command, given, STEPS, "1", "--init-from", newest]

    for ended in (refused, fork):
        assert ended.code == 2, ended.said
        assert "trained with other networks (regressor: '" in ended.said
        assert "give --regressor as it was then" in ended.said
        assert f"--init-from {newest.with_name('step-00000001')}" in ended.said
    assert "resumed from" in resumed.said
    assert "to the bit" in resumed.said
    assert recorded(output, 1) == recorded(output, 2)
    assert train(tuned, tmp_path / "tuned").code == 0
    assert recorded(tmp_path / "tuned", 1) != recorded(output, 2)


def test_a_finished_run_is_not_written_again_with_another_network(
    train: "Train", tmp_path: Path
) -> None:
    """Its bundle holds the predictor that it was trained with."""
    predictor = write_predictor(tmp_path / "predictor", seed=1)
    images = write_image_set(tmp_path / "images", size=32)
    pixels = ["--space", "pixel", "--draws", "online", "--images", images]
    command = [*TINY, *pixels, "--predictor", predictor, STEPS, "1"]
    assert train(command, tmp_path / "run").code == 0
    before = digests(tmp_path / "run")
    write_predictor(predictor, seed=2)
    ended = train(command, tmp_path / "run")

    assert ended.code == 2, ended.said
    assert "predictor: '" in ended.said
    assert any(name.startswith("bundle/") for name in before)
    assert digests(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("record", "is_refused"),
    [
        ({"networks": {"vae": "a" * 64}}, False),
        ({"networks": {"vae": "b" * 64}}, True),
        ({"networks": {"predictor": "b" * 64}}, False),
        ({"restoring": {"weights": {"vae": "a" * 64}}}, False),
        ({"restoring": {"weights": {"vae": "b" * 64}}}, True),
        ({"restoring": None}, False),
        ({}, False),
    ],
    ids=["equal", "other", "unknown", "older-equal", "older-other", "older-unknown", "oldest"],
)
def test_networks_are_compared_as_far_as_the_checkpoint_knows_them(
    record: dict[str, Any], is_refused: bool
) -> None:
    """One of before this record knows those of a flow; of another run it can refuse nothing."""
    before = Checkpoint(Path("step"), Path("step"), record)
    if is_refused:
        with pytest.raises(UsageError, match="vae: 'bbbbbbbbbbbb' -> 'aaaaaaaaaaaa'"):
            refuse_replaced_networks({"vae": "a" * 64}, before)
    else:
        refuse_replaced_networks({"vae": "a" * 64}, before)
