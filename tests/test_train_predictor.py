"""Training the posterior-mean predictor: its loss, its validation, what it writes and refuses."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets.reading.loader import Memory
from datasets.reading.order import Order, WeightedSet
from infra.errors import UsageError
from models.frozen import load_posterior_mean
from models.predictor.swinir import preset
from tests.support.training_sets import SMOKE, log, run_trainer, write_image_set
from trainers import predictor
from trainers.loop.noise import Noise
from trainers.recipes.predictor import PredictorTask
from trainers.recipes.predictor_config import PRESETS, PredictorConfig

TINY = [*SMOKE, "--workers", "0"]
SHORT = ["--max-steps", "8", "--log-every", "1", "--validate-every", "8", "--save-every", "4"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of 32 pixels, three of them held out."""
    return write_image_set(tmp_path_factory.mktemp("images"), size=32)


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps of the tiny preset."""
    output = tmp_path_factory.mktemp("trained") / "run"
    run_trainer(["trainers.predictor", *TINY, *SHORT, "--images", images], output)
    return output


@pytest.mark.parametrize("error", ["mse", "l1"])
def test_the_loss_is_the_error_of_unclamped_predictions_in_unit_range(
    images: Path, error: Any
) -> None:
    """The mean of (g(y) - x)^2, or of |g(y) - x|, with both images in [0, 1]."""
    task = PredictorTask(
        dataclasses.replace(PRESETS["tiny"], model="tiny", images=(str(images),), error=error), CPU
    )
    order = Order([WeightedSet(size=7)], digest="x", seed=0)
    batch = task.samples.load(order.at(torch.arange(2).numpy()), Memory("reused"))
    noise = Noise(seed=0, step=0, positions=range(2), total=2, device=CPU)
    engine: Any = task.network  # the forward pass is all that the losses use of an engine
    loss = task.losses(engine, batch, noise)["loss"]
    residual = task.network((batch.lq + 1) / 2) - (batch.hq + 1) / 2
    expected = residual.square().mean() if error == "mse" else residual.abs().mean()
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert all(value.grad is not None for value in task.network.parameters())


def test_validation_has_lq_as_its_reference(trained: Path) -> None:
    """Under fixed degradations the reference never moves, and training beats its own start."""
    first, final = (line for line in log(trained) if "val/psnr" in line)

    assert (first["step"], final["step"]) == (0, 8)
    assert first["val/psnr_lq"] == final["val/psnr_lq"]
    assert final["val/psnr"] > first["val/psnr"]
    assert (trained / "samples" / "step-00000008.png").is_file()


def test_speed_and_memory_are_logged(trained: Path) -> None:
    """With every line of losses; a CPU's peak is not known, and its share is not made up."""
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train/loss" in line]

    assert steps
    for line in steps:
        assert line["speed/tflops_per_second"] > 0
        assert line["speed/peak_memory_gb"] > 0
        assert "speed/share_of_peak" not in line


def test_the_result_is_what_encode_and_the_flow_load(trained: Path) -> None:
    """The folder holds the averaged weights and their configuration."""
    network, identity = load_posterior_mean(str(trained / "predictor"))
    averages, _ = load_posterior_mean(str(trained / "checkpoints" / "step-00000008" / "ema-0.99"))

    assert network.config == preset("tiny")
    assert len(identity.weights) == 64
    mine, other = network.state_dict(), averages.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_no_images_is_a_usage_error() -> None:
    """The message names the option."""
    with pytest.raises(UsageError, match="--images"):
        predictor.main(["--preset", "tiny", "--output", "x"])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model": "nope"}, "nope"),
        ({"error": "huber"}, "huber"),
        ({"degradation": "rain"}, "rain"),
        ({"images": ("a",), "images_weights": (1.0, 2.0)}, "images_weights"),
        ({"grid_images": 0}, "grid_images"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], named: str) -> None:
    """The message names the value."""
    with pytest.raises(ValueError, match=named):
        PredictorConfig(**values)
