"""What READMEs, programs and presets say that a step takes is what the trainers count."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from models.losses import PERCEPTUAL_LAYERS
from models.predictor import swinir
from models.vae import sim_vae
from models.velocity import hdit, looformer
from trainers.loop.config import EngineConfig, LoopConfig
from trainers.loop.cost import encoder_flops, flops_of
from trainers.recipes import flow_config, predictor_config, vae_config
from trainers.recipes.flow import _build
from trainers.recipes.vae import _Features

ROOT = Path(__file__).resolve().parents[1]
IMAGE, LATENT, CROP = (1, 3, 512, 512), (1, 32, 64, 64), (1, 3, 256, 256)
RATE = 1e14  # FLOP/s, which the README's hours assume
TOLD = re.compile(r"([\d,]+) (?:steps of|x) (\d+)[^,|]*, ([\d.]+) TFLOP each:\s+([\d.e]+)")


class Counts(NamedTuple):
    """FLOPs of a pass over a sample of the full size."""

    velocity: int
    pixel_velocity: int
    predicting: int
    encoding: int
    vae: int
    """Of a crop, both halves."""
    perceptual: int
    """VGG19 on a crop."""


@pytest.fixture(scope="module")
def counts() -> Counts:
    """Count every network on tensors that hold nothing."""
    autoencoder = sim_vae.preset("sim-vae-f8c32")
    with torch.device("meta"):
        vae = sim_vae.SimVAE(autoencoder)
    return Counts(
        flops_of(_build, looformer.PRESETS["latent-c32"], LATENT, (1,)),
        flops_of(_build, hdit.PRESETS["pmrf-512"], IMAGE, (1,)),
        flops_of(swinir.SwinIR, swinir.preset("swinir_L"), IMAGE),
        encoder_flops(vae, IMAGE),
        flops_of(sim_vae.SimVAE, autoencoder, CROP),
        flops_of(_Features, tuple(PERCEPTUAL_LAYERS), CROP),
    )


def told(loop: LoopConfig, engine: EngineConfig, each: int) -> tuple[str, ...]:
    """Return steps, batch, TFLOP of a sample and FLOPs of a run, as texts have them."""
    batch = engine.global_batch_size
    in_all = f"{loop.max_steps * batch * each:.1e}".replace("+", "")
    return f"{loop.max_steps:,}", str(batch), f"{each / 1e12:.2f}", in_all


def test_the_readmes_table_is_what_the_trainers_count(counts: Counts) -> None:
    """Steps, batches, TFLOP, sums and hours of every training, and those of the encoding."""
    table = (ROOT / "README.md").read_text().split("## Hardware and hours")[1]
    rows = re.findall(rf"{TOLD.pattern} \| ([\d,]+) \|", table)
    flow, pmrf = flow_config.PRESETS["latent-pmrf"], flow_config.PRESETS["pmrf"]
    vae, predictor = vae_config.PRESETS["paper"], predictor_config.PRESETS["difface"]
    cached = 3 * counts.velocity
    expected = [
        (vae, 3 * (counts.vae + counts.perceptual)),
        (predictor, 3 * counts.predicting),
        (flow, cached),
        (flow, cached + counts.predicting + 2 * counts.encoding),
        (pmrf, 3 * counts.pixel_velocity + counts.predicting),
    ]
    seconds = [c.loop.max_steps * c.engine.global_batch_size * n / RATE for c, n in expected]

    assert rows == [
        (*told(config.loop, config.engine, each), f"{spent / 3600:,.0f}")
        for (config, each), spent in zip(expected, seconds, strict=True)
    ]
    a_draw = counts.encoding + counts.predicting
    flops = 70_000 * (2 * counts.encoding + 8 * a_draw)
    assert (
        f"2 x {counts.encoding / 1e12:.2f} and 8 x {a_draw / 1e12:.2f} TFLOP an image: "
        f"{flops:.1e} | {flops / RATE / 3600:.1f} |".replace("e+", "e")
    ) in table


def test_the_programs_say_what_they_count(counts: Counts) -> None:
    """The first lines of each trainer name the steps, the batch and the TFLOP of its preset."""
    flow, vae = flow_config.PRESETS["latent-pmrf"], vae_config.PRESETS["paper"]
    predictor = predictor_config.PRESETS["difface"]
    expected = {
        "flow": told(flow.loop, flow.engine, 3 * counts.velocity),
        "vae": told(vae.loop, vae.engine, 3 * (counts.vae + counts.perceptual)),
        "predictor": told(predictor.loop, predictor.engine, 3 * counts.predicting),
    }
    for name, numbers in expected.items():
        assert TOLD.findall((ROOT / f"trainers/{name}.py").read_text()) == [numbers], name


def test_presets_of_velocities_name_the_operations_that_are_counted(counts: Counts) -> None:
    """Beside the number of parameters, of an image of 512 pixels."""
    for module, flops in ((looformer, counts.velocity), (hdit, counts.pixel_velocity)):
        source = Path(str(module.__file__)).read_text()
        assert re.findall(r"([\d.]+) TFLOP at 512 px", source) == [f"{flops / 1e12:.3f}"]
