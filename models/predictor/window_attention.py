"""Attention inside square windows with a bias by relative position, and the mask of shifted ones.

Shapes: windows [B, n, M * M, C], for n windows of M x M tokens, row by row.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

OTHER_REGION = -100.0  # Swin's stand-in for minus infinity; exp(-100) is 4e-44
ALIGNMENT = 8  # channels of a head: CUDA's fused attention takes no others in half precision
ALIGNED_DEVICES = ("cuda",)  # a CPU's takes any, and keeps the bits it has always computed


class WindowAttention(nn.Module):
    """softmax(q k^T / sqrt(d) + bias(relative position) + mask) v in every window.

    Where the device asks for it, heads of d channels are computed as wider ones that end in zeros:
    these add nothing to q k^T and come out of v as zeros, so the result is the same. A SwinIR of
    180 channels has d = 30, for which CUDA would leave its fused kernels.
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window_size: int) -> None:
        super().__init__()
        self.scale = (channels // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_size - 1) ** 2, heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = _ToHeads(channels, 3 * channels, heads=3 * heads)
        self.proj = _FromHeads(channels, channels, heads=heads)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Map windows [B, n, MM, C] to the same shape.

        Args:
            windows: the tokens of each window.
            mask: what is added to the scores, [n, MM, MM].
        """
        # Windows join the batch, so that q, k and v are views: to copy them would move more bytes
        # than masks that are repeated for each image.
        B, n = windows.shape[:2]
        q, k, v = rearrange(self.qkv(windows), "b n t (s h) d -> s (b n) h t d", s=3)
        bias = self._bias(q.dtype)
        if mask is not None:
            masks = mask.to(q.dtype).unsqueeze(1)
            bias = (bias + masks).expand(B, -1, -1, -1, -1).flatten(0, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        out: Tensor = self.proj(rearrange(mixed, "(b n) h t d -> b n t h d", n=n))
        return out

    def _bias(self, dtype: torch.dtype) -> Tensor:
        """Look up the bias of each pair of positions, [1, heads, MM, MM]."""
        bias = self.relative_position_bias_table[self.relative_position_index]  # [MM, MM, heads]
        # Fused attention on CUDA reads rows without gaps. `to` reorders only what it casts.
        bias = bias.permute(2, 0, 1).unsqueeze(0)
        return bias.to(dtype, memory_format=torch.contiguous_format).contiguous()


class _ToHeads(nn.Linear):
    """A linear layer whose output is split into heads, of a width that suits the device."""

    def __init__(self, channels: int, channels_out: int, *, heads: int) -> None:
        super().__init__(channels, channels_out)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., C] to [..., heads, d]; what is wider than ``channels_out`` / heads is zero."""
        weight = self.weight.view(self.heads, -1, self.in_features)
        bias = self.bias.view(self.heads, -1)
        if spare := spare_channels(bias.shape[1], x.device):
            weight, bias = F.pad(weight, (0, 0, 0, spare)), F.pad(bias, (0, spare))
        heads = F.linear(x, weight.flatten(0, 1), bias.flatten())
        return heads.view(*x.shape[:-1], *bias.shape)


class _FromHeads(nn.Linear):
    """A linear layer that takes heads apart, as `_ToHeads` returns them."""

    def __init__(self, channels: int, channels_out: int, *, heads: int) -> None:
        super().__init__(channels, channels_out)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., heads, d] to [..., C_out]; channels behind the head's own are left out."""
        weight = self.weight.view(self.out_features, self.heads, -1)
        if spare := spare_channels(weight.shape[2], x.device):
            weight = F.pad(weight, (0, spare))
        return F.linear(x.flatten(-2), weight.flatten(1), self.bias)


def spare_channels(width: int, device: torch.device) -> int:
    """Count the channels of zeros that a head of ``width`` channels is given on a device."""
    return -width % ALIGNMENT if device.type in ALIGNED_DEVICES else 0


def relative_position_index(size: int) -> Tensor:
    """Number the offsets between any two cells of a window row by row: [MM, MM], int64."""
    cells = torch.cartesian_prod(torch.arange(size), torch.arange(size))  # [MM, 2]
    offsets = cells[:, None] - cells[None, :] + size - 1  # [MM, MM, 2], from 0
    return offsets[..., 0] * (2 * size - 1) + offsets[..., 1]


def shift_mask(h: int, w: int, size: int, device: torch.device | None = None) -> Tensor:
    """Keep apart, in windows shifted by half, the tokens that only wrapping made neighbours.

    Args:
        h: rows of the map, a multiple of ``size``.
        w: columns of the map, likewise.
        size: side of a window.
        device: where the mask is made, so that a GPU need not wait for a copy of it.

    Returns:
        0 within a region and `OTHER_REGION` across regions, [n, MM, MM] for n windows.
    """

    def region(length: int) -> Tensor:
        """Number the stretches of a rolled axis: 0, and 1 behind the seam in the last window."""
        return (torch.arange(length, device=device) >= length - size // 2).long()

    regions = 2 * region(h)[:, None] + region(w)[None, :]
    windows = rearrange(regions, "(h m1) (w m2) -> (h w) (m1 m2)", m1=size, m2=size)
    apart = windows[:, :, None] != windows[:, None, :]
    return torch.zeros(apart.shape, device=device).masked_fill(apart, OTHER_REGION)
