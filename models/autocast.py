"""Operators whose maps keep their precision under autocast.

CUDA's autocast runs norms and nearest upsampling in float32: it copies a half map to float32 and
returns a float32 one, four times the bytes where only bytes take time. The CPU's autocast does not.
Their kernels need no such copies: norms accumulate mean and variance in float32 for half maps too,
and upsampling copies values. For float32 maps all results are PyTorch's own, to the bit.

The weights of a norm are cast to the map's type, which CUDA's kernels ask for.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off for the device of ``x``; devices such as meta have none."""
    if torch.amp.is_autocast_available(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise over the last axis, [..., C] to the same shape and type."""
    with without_autocast(x):
        return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)


def repeat_pixels(x: Tensor) -> Tensor:
    """Double the resolution, [B, C, H, W] to [B, C, 2 H, 2 W], by nearest neighbours."""
    with without_autocast(x):
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class LayerNorm(nn.LayerNorm):
    """PyTorch's layer over the last axis, in the precision of its map."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., C] to the same shape and type."""
        return layer_norm(x, self.weight, self.bias, self.eps)


class GroupNorm(nn.GroupNorm):
    """PyTorch's layer, in the precision of its map."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape and type."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        with without_autocast(x):
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)
