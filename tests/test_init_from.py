"""Fine-tuning: a run begins with the weights of another one, in every form that they have."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor, nn

from infra.errors import UserError
from models.checkpoint import load_checkpoint, save_checkpoint, weights_digest
from models.predictor import swinir
from models.vae.folder import CONFIG_FILE, save_sim_vae
from tests.support import tiny_vae
from tests.support.training_sets import (
    assert_equal,
    saved_weights,
    write_image_set,
    write_latent_set,
)
from trainers.loop.initial import begin_with
from trainers.recipes import flow_config, predictor_config, vae_config
from trainers.recipes.flow import FlowTask
from trainers.recipes.predictor import PredictorTask
from trainers.recipes.vae import VAETask

if TYPE_CHECKING:
    from tests.support.trainers_here import Train

pytest_plugins = ["tests.support.trainers_here", "tests.support.tracking_stores"]
CPU = torch.device("cpu")
STEP = Path("checkpoints") / "step-00000008"


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> FlowTask:
    """A tiny flow with weights of its seed."""
    latents = write_latent_set(tmp_path_factory.mktemp("latents") / "set")
    config = replace(flow_config.PRESETS["tiny"], model="tiny", latents=str(latents))
    return FlowTask(config, CPU)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten pictures of 32 pixels, three of them held out."""
    return str(write_image_set(tmp_path_factory.mktemp("images"), size=32))


@pytest.mark.parametrize(
    ("below", "weights"),
    [
        ("", STEP / "ema-0.99"),
        ("checkpoints/step-00000004", Path("checkpoints/step-00000004/ema-0.99")),
        (STEP, STEP / "ema-0.99"),
        (STEP / "model", STEP / "model"),
        (STEP / "ema-0.99", STEP / "ema-0.99"),
        ("network", STEP / "ema-0.99"),
    ],
)
def test_every_part_of_a_run_gives_its_weights(
    flow: FlowTask, finished: Path, below: str | Path, weights: Path
) -> None:
    """A run and a checkpoint the averaged ones, a folder of weights its own."""
    digest = begin_with(flow, str(finished / below))
    expected = load_checkpoint(finished / weights)[1]

    assert_equal(flow.network.state_dict(), expected)
    assert digest == weights_digest(expected)


def random_weights(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Draw other weights of the same shapes; buffers are the network's own."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.randn(value.shape, generator=generator)
        for name, value in network.named_parameters()
    }
    return {**network.state_dict(), **drawn}


def test_a_vae_begins_with_the_released_layout(images: str, tmp_path: Path) -> None:
    """The authors' folder is diffusers' layout, with keys of its averaging in the configuration."""
    vae = tiny_vae.build()
    vae.load_state_dict(random_weights(vae, 5))
    save_sim_vae(vae, tmp_path / "released")
    path = tmp_path / "released" / CONFIG_FILE
    released = {**json.loads(path.read_bytes()), "decay": 0.9999, "optimization_step": 150_000}
    path.write_text(json.dumps(released))
    config = replace(vae_config.PRESETS["tiny"], model="tiny", crop=16, data=(images,))
    task = VAETask(config, CPU)
    begin_with(task, str(tmp_path / "released"))

    assert_equal(task.network.state_dict(), vae.state_dict())


def test_a_predictor_begins_with_a_published_file_or_a_folder(images: str, tmp_path: Path) -> None:
    """DifFace's form is a bare .pth; OUTPUT/predictor is a folder."""
    config = replace(predictor_config.PRESETS["tiny"], model="tiny", images=(images,))
    task = PredictorTask(config, CPU)
    state, other = (random_weights(task.network, seed) for seed in (5, 6))
    torch.save({"params_ema": state}, tmp_path / "swinir.pth")
    begin_with(task, str(tmp_path / "swinir.pth"))
    assert_equal(task.network.state_dict(), state)

    save_checkpoint(tmp_path / "predictor", other, asdict(swinir.PRESETS["tiny"]))
    begin_with(task, str(tmp_path / "predictor"))
    assert_equal(task.network.state_dict(), other)


def test_a_repository_of_the_hub_is_had_from_its_cache(
    flow: FlowTask, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's own library lays it out; what is not there is refused with what else to give."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--a-flow"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(finished / "network", repository / "snapshots" / ("0" * 40))
    begin_with(flow, "someone/a-flow")
    assert_equal(flow.network.state_dict(), load_checkpoint(finished / "network")[1])

    for missing in ("someone/another", "runs/no such run", "x"):
        with pytest.raises(UserError, match=r"no such file or folder here, and the .* hub did not"):
            begin_with(flow, missing)


def test_weights_of_another_architecture_are_refused_and_the_model_that_is_advised_takes_them(
    flow: FlowTask, finished: Path, tmp_path: Path
) -> None:
    """With both values; also where every shape would fit."""
    values, state = load_checkpoint(finished / "network")
    save_checkpoint(tmp_path / "other", state, {**values, "depths": [9, 9]})
    with pytest.raises(UserError, match=r"another architecture \(depths: \[9, 9\] -> \[.*--model"):
        begin_with(flow, str(tmp_path / "other"))
    begin_with(flow, str(finished / "network"))


@pytest.mark.parametrize("damage", ["cut", "empty folder", "damaged run"])
def test_damaged_weights_are_a_sentence(
    flow: FlowTask, eight: Path, tmp_path: Path, damage: str
) -> None:
    """Never a traceback, and nothing is moved."""
    where = eight / "network"
    if damage == "cut":
        (where / "model.safetensors").write_bytes(b"x")
    elif damage == "empty folder":
        where = tmp_path / "empty"
        where.mkdir()
    else:
        where = eight
        (eight / STEP / "record.json").write_bytes(b"")
    with pytest.raises(UserError, match=f"--init-from {where}"):
        begin_with(flow, str(where))

    assert (eight / STEP).is_dir()


def test_fine_tuning_begins_anew_and_is_recorded(
    command: list[str | Path],
    train: "Train",
    finished: Path,
    tmp_path: Path,
    store: MlflowClient,
) -> None:
    """It begins at step 0 with a fresh optimiser; source and digest are wherever the run is.

    Run again it goes on, whether the option is given, left out, or names the same weights by
    another path; other weights are refused with what to do.
    """
    source, output = finished / STEP / "model", tmp_path / "run"
    tuned = [*command, "--track", "--init-from", source]
    assert train([*tuned, "--max-steps", "4"], output).code == 0
    record = json.loads((output / "checkpoints/step-00000004/record.json").read_bytes())
    init = {"from": str(source), "sha256": weights_digest(load_checkpoint(source)[1])}
    experiment = store.get_experiment_by_name("latent-pmrf/flow")
    (run,) = store.search_runs([experiment.experiment_id])
    (version,) = store.search_model_versions("name = 'latent-pmrf-flow'")

    assert record["origin"] == {"parent": None, "init": init}
    assert json.loads((output / "config.json").read_bytes())["loop"]["init_from"] == str(source)
    assert run.data.params["loop.init_from"] == str(source)
    assert run.data.tags["init.sha256"] == version.tags["init.sha256"] == init["sha256"]
    assert record["step"] == 4

    moved = shutil.copytree(source, tmp_path / "moved")
    for number, again in enumerate((tuned, command, [*command, "--init-from", moved])):
        copy = shutil.copytree(output, tmp_path / f"copy{number}")
        ended = train(again, copy)
        assert ended.code == 0, ended.said
        assert_equal(saved_weights(copy, 8), saved_weights(tmp_path / "copy0", 8))
    other = train([*command, "--init-from", finished / "network"], output)
    assert other.code == 2
    assert f"began from {source}; leave the option out to go on with it" in other.said
    assert train([*command, "--init-from", finished / "network"], tmp_path / "new").code == 0
    seeded = train([*command, "--init-from", source], shutil.copytree(finished, tmp_path / "seed"))
    assert "began with weights of its seed" in seeded.said
