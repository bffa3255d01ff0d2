"""What a network costs: its floating-point operations, counted without computing anything."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def counted(network: Callable[..., object], *inputs: Tensor) -> int:
    """Count the operations of one pass; a multiplication is one, and so is an addition.

    Args:
        network: on the meta device, where nothing is allocated and fused kernels are counted too.
        inputs: on the meta device.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return int(counter.get_total_flops())
