"""Attention inside square windows with a bias by relative position, and the mask of shifted ones.

Shapes: windows [B, n, M * M, C], for n windows of M x M tokens, row by row.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

OTHER_REGION = -100.0  # Swin's stand-in for minus infinity; exp(-100) is 4e-44


class WindowAttention(nn.Module):
    """softmax(q k^T / sqrt(d) + bias(relative position) + mask) v in every window."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_size - 1) ** 2, heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Map windows [B, n, MM, C] to the same shape.

        Args:
            windows: the tokens of each window.
            mask: what is added to the scores, [n, MM, MM].
        """
        bias = self.relative_position_bias_table[self.relative_position_index]  # [MM, MM, heads]
        bias = bias.permute(2, 0, 1).unsqueeze(0)
        if mask is not None:
            bias = bias + mask.unsqueeze(1)
        # Windows join the heads, so that the bias broadcasts over the batch without a copy.
        n = windows.shape[1]
        q, k, v = rearrange(self.qkv(windows), "b n t (s h d) -> s b (n h) t d", s=3, h=self.heads)
        bias = bias.expand(n, -1, -1, -1).flatten(0, 1).unsqueeze(0).to(q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out: Tensor = self.proj(rearrange(mixed, "b (n h) t d -> b n t (h d)", n=n))
        return out


def relative_position_index(size: int) -> Tensor:
    """Number the offsets between any two cells of a window row by row: [MM, MM], int64."""
    cells = torch.cartesian_prod(torch.arange(size), torch.arange(size))  # [MM, 2]
    offsets = cells[:, None] - cells[None, :] + size - 1  # [MM, MM, 2], from 0
    return offsets[..., 0] * (2 * size - 1) + offsets[..., 1]


def shift_mask(h: int, w: int, size: int) -> Tensor:
    """Keep apart, in windows shifted by half, the tokens that only wrapping made neighbours.

    Args:
        h: rows of the map, a multiple of ``size``.
        w: columns of the map, likewise.
        size: side of a window.

    Returns:
        0 within a region and `OTHER_REGION` across regions, [n, MM, MM] for n windows.
    """

    def region(length: int) -> Tensor:
        """Number the stretches of a rolled axis: 0, and 1 behind the seam in the last window."""
        return (torch.arange(length) >= length - size // 2).long()

    regions = 2 * region(h)[:, None] + region(w)[None, :]
    windows = rearrange(regions, "(h m1) (w m2) -> (h w) (m1 m2)", m1=size, m2=size)
    apart = windows[:, :, None] != windows[:, None, :]
    return torch.zeros(apart.shape).masked_fill(apart, OTHER_REGION)
