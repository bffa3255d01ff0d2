"""Activation checkpointing: less kept for the backward pass, for a forward pass more."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """Run a block's forward pass.

    Args:
        block: without randomness, so that no generator's state has to be kept.
        inputs: of its forward pass.
        recompute: keep only the inputs for the backward pass, and repeat the forward pass there.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    return block(*inputs)
