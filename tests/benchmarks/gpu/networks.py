"""What is measured: the published networks and sizes, or tiny ones to try the code, and inputs."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.predictor import swinir
from models.vae import sim_vae
from models.velocity import hdit, looformer
from tests.benchmarks.gpu.device import Device


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Which networks, and how much of what at once."""

    velocity: str
    """Presets, by name."""
    hdit: str
    vae: str
    predictor: str
    side: int
    """Of a face, in pixels."""
    agreeing_side: int
    """Of the pictures on which devices and precisions are compared: the CPU computes them too."""
    crop: int
    """Of a picture that trains the autoencoder."""
    steps: int = 25
    """Of the sampler."""
    flow_batches: tuple[int, ...] = (64, 8)
    faces: tuple[int, ...] = (1, 16)
    encoded: int = 16
    predicted: int = 32
    vae_batches: tuple[int, ...] = (64, 32, 16, 8)
    """The first that fits."""
    hdit_batch: int = 8
    hdit_side: int = 512
    matrix: int = 8192
    copied: int = 2 << 30
    """Bytes of the copy that measures the bandwidth."""
    launches: int = 1000
    qalign_batches: tuple[int, ...] = (8, 32)
    photograph: tuple[int, int] = (1080, 1620)
    """Height and width of what Q-Align's images are prepared from."""
    trained_steps: int = 30


FULL = Sizes(
    velocity="latent-c32", hdit="pmrf-512", vae="sim-vae-f8c32", predictor="swinir_L",
    side=512, agreeing_side=128, crop=256,
)  # fmt: skip
TINY = Sizes(
    velocity="tiny", hdit="tiny", vae="tiny", predictor="tiny",
    side=64, agreeing_side=32, crop=32, steps=3, flow_batches=(2,), faces=(2,),
    encoded=2, predicted=2, vae_batches=(2,), hdit_batch=2, hdit_side=32,
    matrix=64, copied=1 << 16, launches=10, qalign_batches=(1,), photograph=(32, 48),
    trained_steps=4,
)  # fmt: skip


def velocity(sizes: Sizes) -> looformer.LooUFormer:
    """Build the velocity network of latents."""
    return looformer.LooUFormer(looformer.PRESETS[sizes.velocity])


def pixel_velocity(sizes: Sizes) -> hdit.HDiT:
    """Build PMRF's velocity network, which here does not start from a velocity of zero."""
    return hdit.HDiT(replace(hdit.PRESETS[sizes.hdit], zero_init=False))


def autoencoder(sizes: Sizes) -> sim_vae.SimVAE:
    """Build the autoencoder, channels last, as everything of the project that runs it lays it."""
    built = sim_vae.SimVAE(sim_vae.PRESETS[sizes.vae])
    return built.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def predictor(sizes: Sizes, side: int) -> swinir.SwinIR:
    """Build the predictor, for pictures of this side."""
    return swinir.SwinIR(replace(swinir.PRESETS[sizes.predictor], image_size=side))


def frozen(network: nn.Module) -> Any:
    """Return a network as it is used when it is not trained."""
    return network.eval().requires_grad_(False)


def latent_shape(sizes: Sizes, batch: int, side: int) -> tuple[int, int, int, int]:
    """Return the shape of the latents of pictures of this side."""
    config = sim_vae.PRESETS[sizes.vae]
    cells = side >> (len(config.block_out_channels) - 1)
    return batch, config.latent_channels, cells, cells


def pictures(batch: int, side: int, seed: int = 0) -> Tensor:
    """Draw pictures on the CPU, float32 [batch, 3, side, side] in [0, 1], of 8 bits.

    They are noise of which the coarse is the stronger, as in photographs.
    """
    generator = torch.Generator().manual_seed(seed)
    total, cells = torch.zeros(batch, 3, side, side), 2
    while cells <= side:
        noise = torch.randn(batch, 3, cells, cells, generator=generator)
        total += F.interpolate(noise, size=side, mode="bicubic", align_corners=False) / cells
        cells *= 2
    return (total.mul(0.4).add(0.5).clamp(0, 1) * 255).round() / 255


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Draw N(0, 1) on the CPU, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(device: Device, *shape: int) -> Tensor:
    """Draw N(0, 1) on the device, float32."""
    generator = torch.Generator(device.torch).manual_seed(0)
    return torch.randn(shape, generator=generator, device=device.torch)
