"""Steps of training: plain PyTorch around the project's networks, DeepSpeed, and whole programs."""

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.flops import counted
from models.losses import PERCEPTUAL_LAYERS, PerceptualLoss, SimVAELoss, SimVAELossConfig
from models.metrics.backbones import VGG19
from models.rectified_flow import flow_matching_loss, interpolate
from tests.benchmarks.gpu import networks
from tests.benchmarks.gpu.agreement import he
from tests.benchmarks.gpu.device import Device
from tests.benchmarks.gpu.networks import Sizes, pictures
from tests.benchmarks.gpu.rows import Found, Row
from trainers.loop.cost import forward_flops

RATE = 1e-4
# What a sample of a step saves for the backward pass, counted, and a tenth for the pass itself.
FLOW_GB, HDIT_GB, VAE_GB = 0.7, 2.2, {"bf16": 1.15, "fp32": 1.8}
WEIGHTS_GB = 4.0  # of weights, gradients, moments and weights in bfloat16, at most
Batch = tuple[Tensor, Tensor, Tensor]


def flow_rows(sizes: Sizes) -> list[Row]:
    """Return steps of the latent flow in bfloat16."""
    return [
        Row(
            f"flow-step/{way}/batch-{batch}",
            30.0 if way.startswith("compiled") else 4.0,
            functools.partial(_flow, sizes, way, batch),
            memory_gb=WEIGHTS_GB + FLOW_GB * batch,
        )
        for way in ("eager", "eager-channels-last", "compiled", "compiled-channels-last")
        for batch in sizes.flow_batches
        if batch == sizes.flow_batches[0] or not way.endswith("last")
    ]


def vae_rows(sizes: Sizes) -> list[Row]:
    """Return steps of the autoencoder with its whole loss."""
    ways = (("eager", "bf16", 5.0), ("eager", "fp32", 12.0), ("compiled", "bf16", 60.0))
    return [
        Row(f"vae-step/{mode}/{precision}", took, functools.partial(_vae, sizes, mode, precision))
        for mode, precision, took in ways
    ]


def hdit_rows(sizes: Sizes) -> list[Row]:
    """Return PMRF's flow of pixels: a velocity of a batch of 16, and a step."""
    return [
        Row("hdit/forward", 3.0, functools.partial(_hdit_forward, sizes), memory_gb=10.0),
        Row(
            "hdit/step",
            4.0,
            functools.partial(_hdit_step, sizes),
            memory_gb=WEIGHTS_GB + HDIT_GB * sizes.hdit_batch,
        ),
    ]


def deepspeed_rows(sizes: Sizes) -> list[Row]:
    """Return steps of the latent flow by the trainers' engine, one process, ZeRO 0 to 2."""
    return [
        Row(
            f"deepspeed/zero-{stage}", 8.0, functools.partial(_engine, sizes, stage), memory_gb=16.0
        )
        for stage in (0, 1, 2)
    ]


def program_rows(sizes: Sizes) -> list[Row]:
    """Return the trainers as a user starts them, at the sizes of the paper."""
    flow = functools.partial(_program, _flow_command, sizes, sizes.flow_batches, FLOW_GB)
    vae = functools.partial(_program, _vae_command, sizes, sizes.vae_batches, VAE_GB["bf16"])
    return [Row("program/flow", 45.0, flow), Row("program/vae", 50.0, vae)]


# --- plain steps ---------------------------------------------------------------------------------


def stepped(
    device: Device, network: nn.Module, loss: Callable[[], Tensor], precision: str
) -> Found:
    """Time steps of AdamW with clipping, as the trainers take them, without an engine.

    Returns:
        Its `Device.timed`; the loss and the gradient's norm of the first step, which an eager and a
        compiled network must share.
    """
    trained = [value for value in network.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, fused=device.is_cuda)
    first: Found = {}

    def step() -> None:
        with device.computing(precision):
            value = loss()
        value.backward()
        norm = nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if not first:
            first.update(first_loss=value.item(), first_gradient_norm=norm.item())

    return {**device.timed(step), **first}


def _flow(sizes: Sizes, way: str, batch: int, device: Device) -> Found:
    network = device.seeded(lambda: networks.velocity(sizes))
    pairs = _pairs(sizes, batch, device)
    network.channels_last = way.endswith("channels-last")
    if way.startswith("compiled"):
        device.compile(network)
    found = stepped(device, network, lambda: _flow_loss(network, *pairs), "bf16")
    return device.rated(found, _flow_flops(sizes, batch), batch)


def _pairs(sizes: Sizes, batch: int, device: Device) -> Batch:
    """Draw sources, targets and times."""
    shape = networks.latent_shape(sizes, batch, sizes.side)
    x_0, x_1 = networks.drawn(device, 2, *shape)
    return x_0, x_1, torch.linspace(0, 1, batch, device=device.torch)


def _flow_loss(network: Callable[..., Tensor], x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    return flow_matching_loss(network(interpolate(x_0, x_1, t), t), x_0, x_1)


@functools.cache
def _flow_flops(sizes: Sizes, batch: int) -> int:
    shape = networks.latent_shape(sizes, 1, sizes.side)
    return 3 * batch * forward_flops(lambda: networks.velocity(sizes), shape, (1,))


def _vae(sizes: Sizes, mode: str, precision: str, device: Device) -> Found:
    batch = device.fitting(sizes.vae_batches, VAE_GB[precision])
    vae, criterion = device.seeded(lambda: (networks.autoencoder(sizes), _vae_loss()))
    images = pictures(batch, sizes.crop).to(device.torch) * 2 - 1
    images = images.contiguous(memory_format=torch.channels_last)
    noise = networks.drawn(device, *networks.latent_shape(sizes, batch, sizes.crop))
    if mode == "compiled":
        device.compile(vae, criterion)

    def loss() -> Tensor:
        posterior = vae.encode(images)
        reconstruction = vae.decode(posterior.sample(noise=noise))
        total: Tensor = criterion(reconstruction, images, *posterior).total
        return total

    # float32 as the trainers leave it: PyTorch convolves in TF32 where nobody forbids it
    found = stepped(device, vae, loss, "bf16" if precision == "bf16" else "tf32")
    return {"batch": batch, **device.rated(found, batch * vae_flops(sizes), batch)}


def _vae_loss() -> SimVAELoss:
    perceptual = PerceptualLoss(VGG19())
    he(perceptual)
    return SimVAELoss(SimVAELossConfig(), perceptual)


@functools.cache
def vae_flops(sizes: Sizes) -> int:
    """Count a sample of a step: the autoencoder, and VGG on both images and back once."""
    image = (1, 3, sizes.crop, sizes.crop)
    with torch.device("meta"):
        vgg = counted(lambda images: VGG19()(images, tuple(PERCEPTUAL_LAYERS)), torch.empty(image))
    return 3 * (forward_flops(lambda: networks.autoencoder(sizes), image) + vgg)


def _hdit_forward(sizes: Sizes, device: Device) -> Found:
    batch = 2 * sizes.hdit_batch
    network = networks.frozen(device.seeded(lambda: networks.pixel_velocity(sizes)))
    x_t, _, t = _pixel_pairs(sizes, batch, device)
    with torch.no_grad(), device.computing("bf16"):
        timing = device.timed(lambda: network(x_t, t))
    return {"batch": batch, **device.rated(timing, batch * _hdit_flops(sizes), batch)}


def _hdit_step(sizes: Sizes, device: Device) -> Found:
    network, batch = device.seeded(lambda: networks.pixel_velocity(sizes)), sizes.hdit_batch
    pairs = _pixel_pairs(sizes, batch, device)
    found = stepped(device, network, lambda: _flow_loss(network, *pairs), "bf16")
    return {"batch": batch, **device.rated(found, 3 * batch * _hdit_flops(sizes), batch)}


def _pixel_pairs(sizes: Sizes, batch: int, device: Device) -> Batch:
    x_0, x_1 = networks.drawn(device, 2, batch, 3, sizes.hdit_side, sizes.hdit_side)
    return x_0, x_1, torch.linspace(0, 1, batch, device=device.torch)


@functools.cache
def _hdit_flops(sizes: Sizes) -> int:
    image = (1, 3, sizes.hdit_side, sizes.hdit_side)
    return forward_flops(lambda: networks.pixel_velocity(sizes), image, (1,))


# --- DeepSpeed and the programs ------------------------------------------------------------------


def _engine(sizes: Sizes, stage: int, device: Device) -> Found:
    from trainers.loop.batches import plan_batches
    from trainers.loop.config import EngineConfig
    from trainers.loop.engine import Engine, join

    join()
    batch = sizes.flow_batches[-1]
    network, pairs = device.seeded(lambda: networks.velocity(sizes)), _pairs(sizes, batch, device)
    trained = [value for value in network.parameters() if value.requires_grad]
    config = EngineConfig(
        global_batch_size=batch, precision="bf16", zero_stage=stage, compile=False
    )
    optimizer = torch.optim.AdamW(trained, lr=RATE, fused=device.is_cuda)
    engine = Engine(network, optimizer, config, plan_batches(config, 1))

    def step() -> None:
        engine.backward(_flow_loss(engine, *pairs))
        engine.step(RATE)

    timing = device.timed(step)
    return {"batch": batch, **device.rated(timing, _flow_flops(sizes, batch), batch)}


def _program(
    command: Callable[[Sizes, Path, int], list[Any]],
    sizes: Sizes,
    batches: tuple[int, ...],
    gb_a_sample: float,
    device: Device,
) -> Found:
    """Run a trainer for a few steps, with the first batch that fits; returns what its log says."""
    batch, steps = device.fitting(batches, gb_a_sample), sizes.trained_steps
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ["--max-steps", steps, "--log-every", max(1, steps // 3), "--validate-every", 0]
        options += ["--global-batch-size", batch, "--output", folder / "run", "--no-track"]
        whole = [sys.executable, "-m", *command(sizes, folder, batch), *options]
        done = subprocess.run(map(str, whole), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"it ended with {done.returncode}: {done.stderr[-1500:]}")
        lines = (folder / "run" / "log.jsonl").read_text().splitlines()
    log = [line for line in map(json.loads, lines) if "speed/step_seconds" in line][-1]
    return {
        "batch": batch,
        "ms": log["speed/step_seconds"] * 1e3,
        "samples_per_s": log["speed/samples_per_second"],
        "peak_gb": log["speed/peak_memory_gb"],
        "log": log,
        "said": done.stdout[-1500:],
    }


def _flow_command(sizes: Sizes, folder: Path, batch: int) -> list[Any]:
    from tests.support.training_sets import write_latent_set

    _, channels, side, _ = networks.latent_shape(sizes, 1, sizes.side)
    latents = write_latent_set(folder / "latents", channels=channels, side=side, train=batch)
    return ["trainers.flow", "--model", sizes.velocity, "--latents", latents]


def _vae_command(sizes: Sizes, folder: Path, batch: int) -> list[Any]:
    from tests.support.training_sets import write_image_set

    vgg = he(VGG19())
    torch.save(vgg.state_dict(), folder / "vgg.pth")
    images = write_image_set(folder / "images", size=sizes.side, train=batch, held_out=0)
    options = ["--vgg", folder / "vgg.pth", "--data", images, "--precision", "bf16"]
    return ["trainers.vae", "--model", sizes.vae, "--crop", sizes.crop, *options]
