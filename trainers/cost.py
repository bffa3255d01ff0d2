"""What a network costs, counted without running it."""

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
