"""Training Sim-VAE: the losses it gives, what it averages, writes and refuses."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from datasets.reading.image_set import ImageSet
from infra.errors import UserError
from models.checkpoint import load_checkpoint, weights_digest
from models.frozen import load_vae
from models.metrics.backbones import VGG19
from models.vae.folder import load_sim_vae
from tests.support.training_sets import (
    SMOKE,
    assert_golden,
    log,
    run_trainer,
    same_curve,
    write_image_set,
)
from trainers.recipes.vae import VAETask
from trainers.recipes.vae_config import PRESETS, VAEConfig

TINY = [*SMOKE, "--crop", "16", "--workers", "0"]
SHORT = ["--max-steps", "6", "--log-every", "1", "--validate-every", "6", "--save-every", "3"]
FIFTY = ["--peak", "0.004", "--max-steps", "50", "--log-every", "1", "--validate-every", "50"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of 32 pixels, three of them held out."""
    return write_image_set(tmp_path_factory.mktemp("images"), size=32)


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of the tiny preset."""
    output = tmp_path_factory.mktemp("trained")
    run_trainer(["trainers.vae", *TINY, *SHORT, "--data", images], output)
    return output


def test_fifty_steps_give_the_golden_losses(images: Path, tmp_path: Path) -> None:
    """A change that should not alter training shows the same numbers."""
    by_shards = ["tests.support.by_shards", "vae"]
    run_trainer([*by_shards, *TINY, *FIFTY, "--data", images], tmp_path / "run")

    assert_golden("vae", log(tmp_path / "run"))


def test_validation_is_recorded_at_the_start_and_at_the_end(trained: Path) -> None:
    """Held-out PSNR, the posterior's sigma and the latents' statistics, by step."""
    found = {line["step"]: line for line in log(trained) if "val/psnr" in line}

    assert sorted(found) == [0, 6]
    assert found[6]["val/psnr"] > found[0]["val/psnr"]
    assert found[6]["val/posterior_sigma"] > 0
    assert found[6]["val/latent_std_least"] <= found[6]["val/latent_std_most"]


def test_the_average_is_not_the_raw_network(trained: Path) -> None:
    """Validated and exported are the averaged weights; both are saved in float32."""
    folder = trained / "checkpoints" / "step-00000006"
    raw, average = (load_checkpoint(folder / name)[1] for name in ("model", "ema-0.99"))
    exported = load_sim_vae(trained / "vae").state_dict()

    assert any(not torch.equal(raw[name], average[name]) for name in raw)
    assert all(torch.equal(exported[name], average[name]) for name in average)
    assert {value.dtype for value in raw.values()} == {torch.float32}


def test_a_grid_of_pictures_is_kept(trained: Path) -> None:
    """Looking is part of validating."""
    names = sorted(path.name for path in (trained / "samples").iterdir())

    assert names == ["step-00000000.png", "step-00000006.png"]


@pytest.mark.slow
def test_the_finished_vae_is_registered_once(images: Path, tmp_path: Path) -> None:
    """By the digest that latent sets name it by; the same command again changes nothing."""
    for _ in range(2):
        run_trainer(["trainers.vae", *TINY, *SHORT, "--data", images], tmp_path / "run", track=True)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    (version,) = client.search_model_versions("name = 'sim-vae'")

    assert client.get_run(version.run_id).info.status == "FINISHED"
    assert version.tags["weights_sha256"] == load_vae(str(tmp_path / "run" / "vae"))[1].weights
    assert version.tags["step"] == "6"
    assert version.tags[f"data.{images.name}"] == ImageSet(images).digest.partition("/")[0]


def test_two_ranks_train_as_one(images: Path, trained: Path, tmp_path: Path) -> None:
    """Half a batch each: the same curve."""
    command = ["trainers.vae", *TINY, *SHORT, "--data", images]
    said = run_trainer(command, tmp_path / "run", ranks=2)

    assert "4 = 2 ranks x 2 samples x 1" in said
    same_curve(log(tmp_path / "run"), log(trained), rel=1e-4)


def test_the_perceptual_loss_needs_its_weights(images: Path, tmp_path: Path) -> None:
    """Missing weights stop the run before it starts, and the message says what to do."""
    config = dataclasses.replace(PRESETS["paper"], data=(str(images),), vgg=str(tmp_path / "x.pth"))

    with pytest.raises(UserError, match="--perceptual 0"):
        VAETask(config, torch.device("cpu"))


def test_the_network_of_the_perceptual_loss_is_named(images: Path, tmp_path: Path) -> None:
    """By its weights, wherever the file lies; without that term there is nothing to name."""
    vgg = VGG19()
    torch.save(vgg.state_dict(), tmp_path / "vgg.pth")
    plain = dataclasses.replace(PRESETS["tiny"], model="tiny", data=(str(images),))
    loss = dataclasses.replace(plain.loss, perceptual=0.5)
    config = dataclasses.replace(plain, loss=loss, vgg=str(tmp_path / "vgg.pth"))

    named = VAETask(config, torch.device("cpu")).networks()
    assert named == {"vgg": weights_digest(vgg.state_dict())}
    assert VAETask(plain, torch.device("cpu")).networks() == {}


def test_a_set_without_held_out_images_is_refused(tmp_path: Path) -> None:
    """There is no validation on what was trained on."""
    images = write_image_set(tmp_path / "set", size=32, held_out=0)
    config = dataclasses.replace(PRESETS["tiny"], model="tiny", data=(str(images),))

    with pytest.raises(UserError, match="--val-fraction"):
        VAETask(config, torch.device("cpu"))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"crop": 100}, "crop=100.*8"),
        ({"model": "nope"}, "nope"),
        ({"data": ("a",), "data_weights": (1.0, 2.0)}, "data_weights"),
        ({"grid_images": 0}, "grid_images"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], named: str) -> None:
    """The message names the value and what is allowed."""
    with pytest.raises(ValueError, match=named):
        VAEConfig(**values)
