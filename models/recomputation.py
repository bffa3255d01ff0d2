"""Activation checkpointing: less kept for the backward pass, for a forward pass more."""

from collections.abc import Callable
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
    return run_recomputed(block, *inputs) if recompute else block(*inputs)


def run_recomputed(function: Callable[..., Any], *inputs: Any) -> Any:
    """Call a function without randomness, and keep only its inputs for the backward pass.

    Without gradients there is none, and nothing to prepare for it: `checkpoint` would load the
    compiler of PyTorch, which takes two seconds of a process that only restores.
    """
    if torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return function(*inputs)
