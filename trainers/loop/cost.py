"""What a network costs, counted without running it."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(build: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> int:
    """Count the floating-point operations of a forward pass; a multiplication is one, so is a sum.

    Args:
        build: makes the network; nothing is allocated for it.
        shapes: of its inputs.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network: Any = build()
        network(*(torch.empty(shape) for shape in shapes))
    return int(counter.get_total_flops())


def encoder_flops(vae: Any, shape: tuple[int, ...]) -> int:
    """Count an encoder's forward pass on images of this shape."""
    encoder = copy.deepcopy(vae.encoder if hasattr(vae, "encoder") else vae.vae.encoder).to("meta")
    return forward_flops(lambda: encoder, shape)


def gigabytes(parameters: int, ranks: int, zero_stage: int, averages: int) -> float:
    """Return what a rank holds without activations, all float32.

    Args:
        parameters: trained.
        ranks: over which ZeRO shards them.
        zero_stage: 0 to 3.
        averages: of the weights; one more copy is validated.
    """
    # Weights, gradients and both moments; sharded from these stages on.
    shares = [ranks if zero_stage >= least else 1 for least in (3, 2, 1, 1)]
    copies = sum(1 / share for share in shares) + averages + 1
    return 4 * copies * parameters / 1e9
