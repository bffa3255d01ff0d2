"""Weights that are cast once give what autocast gives that casts them at every call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.half import cast_weights
from models.predictor.swinir import PRESETS as PREDICTORS
from models.predictor.swinir import SwinIR
from models.velocity import hdit, looformer
from tests.support.tiny_bundle import public_vae, seeded
from tests.support.tiny_vae import build as build_vae

FAR = 0.05
"""Largest root mean square of bfloat16's error, in that of the result, at these sizes."""


class Casts(TorchDispatchMode):
    """Counts the casts of a network's weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.places = {parameter.data_ptr() for parameter in network.parameters()}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count a copy to another type of a tensor that lies where a weight lies."""
        is_copy = func is torch.ops.aten._to_copy.default
        if is_copy and args[0].data_ptr() in self.places and kwargs.get("dtype") is not None:
            self.count += 1
        return func(*args, **(kwargs or {}))


def of_velocity(network: nn.Module, channels: int) -> Callable[[], Tensor]:
    """Return an evaluation of a velocity network."""
    generator = torch.Generator().manual_seed(1)
    x_t, t = torch.randn(2, channels, 16, 16, generator=generator), torch.tensor([0.2, 0.9])
    return lambda: network(x_t, t)


def images(low: float) -> Tensor:
    """Draw images between ``low`` and 1."""
    generator = torch.Generator().manual_seed(2)
    return low + (1 - low) * torch.rand(2, 3, 32, 32, generator=generator)


def looufor() -> tuple[nn.Module, Callable[[], Tensor]]:
    """Build the velocity network of latents."""
    network = seeded(lambda: looformer.LooUFormer(looformer.PRESETS["tiny"]), 1)
    return network, of_velocity(network, 4)


def hourglass() -> tuple[nn.Module, Callable[[], Tensor]]:
    """Build the velocity network of pixels."""
    network = seeded(lambda: hdit.HDiT(hdit.PRESETS["tiny"]), 2)
    return network, of_velocity(network, 3)


def predictor() -> tuple[nn.Module, Callable[[], Tensor]]:
    """Build the posterior-mean predictor."""
    network = seeded(lambda: SwinIR(PREDICTORS["tiny"]), 3)
    return network, lambda: network.posterior_mean(images(0))


def autoencoder(vae: nn.Module) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return an autoencoder, and its way of an image and back."""
    network: Any = vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, lambda: network.decode(network.encode(images(-1)).mean.float())


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Callable[[], Tensor]]]] = {
    "LooUFormer": looufor,
    "HDiT": hourglass,
    "SwinIR": predictor,
    "Sim-VAE": lambda: autoencoder(build_vae()),
}


@torch.no_grad()
@pytest.mark.parametrize(
    "build",
    [
        *(pytest.param(build, id=name) for name, build in NETWORKS.items()),
        pytest.param(  # to import diffusers takes seconds
            lambda: autoencoder(public_vae()), id="diffusers", marks=pytest.mark.slow
        ),
    ],
)
def test_weights_that_are_cast_once_change_no_bit(build: Any) -> None:
    """No weight of a matrix or a kernel is cast at a call any more; float32 is as far as before."""
    network, run = build()
    exact = run().float()
    with torch.autocast("cpu", torch.bfloat16):
        with Casts(network) as before:
            expected = run()
        cast_weights(network, torch.bfloat16)
        with Casts(network) as after:
            found = run()

    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype
    halved = sum(parameter.dtype == torch.bfloat16 for parameter in network.parameters())
    assert before.count - after.count >= halved > 0
    error = float((found.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert 0 < error < FAR


def test_what_autocast_leaves_in_float32_stays() -> None:
    """Frequencies of the time, scales of norms and of attention, and factors of skips."""
    network, _ = hourglass()
    cast_weights(network, torch.bfloat16)
    kept = {n.rpartition(".")[2] for n, p in network.named_parameters() if p.dtype == torch.float32}

    assert kept == {"scale", "fac"}
    assert all(b.dtype == torch.float32 for b in network.buffers() if b.is_floating_point())
