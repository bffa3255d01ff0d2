"""A batch without samples goes through every network, and gives gradients of zero."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from models.pixel_shuffle import pixel_shuffle, pixel_unshuffle
from models.predictor.swinir import PRESETS as SWINIR
from models.predictor.swinir import SwinIR
from models.predictor.window_attention import WindowAttention
from models.vae.sim_vae import PRESETS as SIM_VAE
from models.vae.sim_vae import SimVAE
from models.velocity.hdit import PRESETS as HDIT
from models.velocity.hdit import HDiT
from models.velocity.looformer import PRESETS as LOOFORMER
from models.velocity.looformer import Downsample, LooUFormer
from models.velocity.neighborhood import neighborhood_attention

NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "hdit": (lambda: HDiT(HDIT["tiny"]), [(3, 16, 16), ()]),
    "swinir": (lambda: SwinIR(SWINIR["tiny"]), [(3, 60, 50)]),
    "window-attention": (lambda: WindowAttention(24, 2, 4), [(3, 16, 24), (16, 16)]),
    **{
        f"looformer-{kind}": (
            lambda kind=kind: LooUFormer(
                replace(LOOFORMER["tiny"], downsample=kind, downsample_kernel=3)
            ),
            [(LOOFORMER["tiny"].in_channels, 16, 16), ()],
        )
        for kind in get_args(Downsample)
    },
    **{
        f"sim-vae-{resize}-{block}": (
            lambda resize=resize, block=block: SimVAE(
                replace(SIM_VAE["tiny"], resize=resize, res_block=block, mid="self_attention")
            ),
            [(3, 32, 32)],
        )
        for resize in ("interpolate", "pixel_shuffle", "sd")
        for block in ("sim", "sd")
    },
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_takes_an_empty_batch(name: str, recompute: bool) -> None:
    """The output has the shape that it has for samples, but for their number."""
    build, shapes = NETWORKS[name]
    network: Any = build()
    network.activation_checkpointing = recompute
    inputs = {count: [torch.rand(count, *shape) for shape in shapes] for count in (0, 1)}
    if name == "window-attention":
        inputs[0][1] = inputs[1][1] = torch.zeros(3, 16, 16)  # the mask, which has no batch
    none, one = (_tensor(network(*inputs[count])) for count in (0, 1))
    none.sum().backward()

    assert none.shape == (0, *one.shape[1:])
    assert not any(
        parameter.grad.any() for parameter in network.parameters() if parameter.grad is not None
    )


def _tensor(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def test_neighborhood_attention_takes_an_empty_batch() -> None:
    """So do its gradients."""
    q, k, v = (torch.zeros(0, 2, 9, 12, 8, requires_grad=True) for _ in range(3))
    mixed = neighborhood_attention(q, k, v, 3)
    mixed.sum().backward()

    assert mixed.shape == q.shape
    assert q.grad is not None
    assert q.grad.shape == q.shape


def test_pixel_shuffles_are_pytorchs() -> None:
    """For samples there is no difference, and one undoes the other."""
    x = torch.rand(2, 8, 3, 5)

    assert torch.equal(pixel_shuffle(x, 2), nn.functional.pixel_shuffle(x, 2))
    assert torch.equal(pixel_unshuffle(pixel_shuffle(x, 2), 2), x)
    assert pixel_unshuffle(pixel_shuffle(x[:0], 2), 2).shape == (0, 8, 3, 5)
