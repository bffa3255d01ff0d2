"""Compiling blocks: which, once each, and that a run is the same run with it."""

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from models import compilation
from models.compilation import blocks, compile_blocks
from models.losses import PerceptualLoss
from models.metrics.backbones import VGG19
from models.predictor.swinir import SwinIR
from models.predictor.swinir import preset as predictor_preset
from models.vae.sim_vae import PRESETS as AUTOENCODERS
from models.vae.sim_vae import SimVAE
from models.velocity import hdit, looformer
from models.velocity.hourglass import level_geometry
from tests.support.training_sets import saved_weights
from trainers.loop.config import EngineConfig
from trainers.loop.engine import Engine

if TYPE_CHECKING:
    from tests.support.trainers_here import Train

pytest_plugins = ["tests.support.trainers_here"]


@pytest.fixture(autouse=True)
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture graphs and run them as they are; a compiler of machine code would take minutes."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    torch.compiler.reset()
    counters.clear()


@pytest.mark.parametrize(
    ("network", "left"),
    [
        (lambda: looformer.LooUFormer(looformer.PRESETS["latent-c32"]), 0.15),
        (lambda: hdit.HDiT(hdit.PRESETS["pmrf-512"]), 0.15),
        (lambda: SimVAE(AUTOENCODERS["sim-vae-f8c32"]), 0.15),
        (lambda: SimVAE(AUTOENCODERS["sd-vae-f8c32"]), 0.15),
        (lambda: SwinIR(predictor_preset("swinir_L")), 0.25),
        (VGG19, 0.0),
    ],
    ids=["looformer", "hdit", "sim-vae", "sd-vae", "swinir", "vgg19"],
)
def test_most_of_every_network_is_in_its_blocks(network: type[nn.Module], left: float) -> None:
    """By parameters; what is left is resizing layers and both ends. No block holds another one."""
    with torch.device("meta"):
        model = network()
    inside = [value for block in blocks(model) for value in block.parameters()]
    count = sum(value.numel() for value in model.parameters())

    assert len(set(map(id, inside))) == len(inside)
    assert sum(value.numel() for value in inside) >= (1 - left) * count


def test_blocks_of_one_kind_share_their_graph_and_copies_are_not_compiled() -> None:
    """Keys of the state are as they were; a copy computes with its own weights."""
    config = looformer.PRESETS["tiny"]
    network = nn.ModuleList(looformer.Block(config, 0) for _ in range(3))
    before = list(network.state_dict())
    x = torch.randn(1, 32, 4, 4)
    inputs = x, torch.randn(1, 32), level_geometry(config, 0, 4, 4, x)
    compile_blocks(network)
    for block in network:
        block(*inputs)
    copied = copy.deepcopy(network)
    for value in copied.parameters():
        value.detach().zero_()
    assert counters["stats"]["unique_graphs"] == 1
    assert torch.equal(copied[0](*inputs), inputs[0])
    assert counters["stats"]["unique_graphs"] == 1
    assert list(network.state_dict()) == before


@pytest.mark.parametrize(
    "layout",
    [
        "--zero-stage 0 --activation-checkpointing",
        *(
            pytest.param(f"--zero-stage {stage}", marks=pytest.mark.slow)
            for stage in ("1", "2 --micro-batch-size 2", "3 --activation-checkpointing")
        ),
    ],
)
def test_nothing_is_compiled_after_the_second_step(
    command: list[str | Path],
    train: "Train",
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
) -> None:
    """And the run learns what it learns without, as the same run, at every stage of ZeRO."""
    graphs: list[int] = []
    step = Engine.step

    def counting(engine: Engine, *arguments: float) -> object:
        graphs.append(counters["stats"]["unique_graphs"])
        return step(engine, *arguments)

    monkeypatch.setattr(Engine, "step", counting)
    options = ["--compile", "True", *layout.split()]
    options += ["--validate-every", "2"]
    ended = train([*command, *options, "--max-steps", "4"], tmp_path / "run")
    assert ended.code == 0, ended.said
    assert "compiled block by block" in ended.said
    assert graphs[1] > 0
    assert graphs[2:] == graphs[1:2] * (len(graphs) - 2)
    assert not counters["graph_break"]
    mine, plain = (saved_weights(run, 4) for run in (tmp_path / "run", finished))
    for name, value in mine.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-5)

    again = train([*command, "--max-steps", "5", *layout.split()], tmp_path / "run")
    assert again.code == 0, again.said
    assert "up to rounding, from another layout" in again.said
    record = json.loads((tmp_path / "run/checkpoints/step-00000004/record.json").read_bytes())
    assert record["layout"]["compiled"]


def test_the_perceptual_loss_of_a_step_is_captured_once() -> None:
    """VGG with gradients, and without for the reference; the loss and its gradient are the same."""
    loss = PerceptualLoss(VGG19())
    generator = torch.Generator().manual_seed(0)
    images, made = torch.rand(2, 1, 3, 16, 16, generator=generator) * 2 - 1
    made.requires_grad_()
    plain = loss(made, images)
    expected = torch.autograd.grad(plain, made)[0]
    compile_blocks(loss)
    for _ in range(2):
        found = loss(made, images)
        torch.testing.assert_close(found, plain)
        torch.testing.assert_close(torch.autograd.grad(found, made)[0], expected)

    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize(
    ("given", "device", "expected"),
    [(None, "cuda", True), (None, "cpu", False), (True, "cpu", True), (False, "cuda", False)],
)
def test_blocks_are_compiled_on_cuda_unless_told_otherwise(
    given: bool | None, device: str, expected: bool
) -> None:
    """On a CPU a compiler has less to gain, and takes as long."""
    assert EngineConfig(compile=given).compiles(device) == expected
