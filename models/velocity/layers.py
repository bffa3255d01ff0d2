"""The layers that both velocity networks use: norms, rotary attention, the mapping of the time.

Statistics, angles and Fourier features are computed in float32 at least, under autocast too.
Shapes: B batch, H x W map, C channels, e head dimension, M mapping width.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from models.velocity.neighborhood import neighborhood_attention

EPS = 1e-6


def widen(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or in its own type where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_normalize(x: Tensor, scale: Tensor, dim: int = -1, eps: float = EPS) -> Tensor:
    """Divide ``x`` by its root mean square along ``dim``, and multiply by ``scale``."""
    wide = widen(x)
    return (wide * torch.rsqrt(wide.square().mean(dim, True) + eps) * widen(scale)).to(x.dtype)


def zero_(module: nn.Module) -> None:
    """Set all parameters of a module to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


class RMSNorm(nn.Module):
    """Root-mean-square norm of the last axis, with a learned scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return rms_normalize(x, self.scale)


class AdaRMSNorm(nn.Module):
    """RMS norm whose scale is 1 + W c (+ b); W and b start at zero.

    Args:
        width: channels of x.
        condition_width: channels of c.
        bias: have b.
        dim: axis of x that holds the channels.
    """

    def __init__(
        self, width: int, condition_width: int, *, bias: bool = False, dim: int = -1
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(condition_width, width, bias=bias)
        self.dim = dim
        zero_(self.linear)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map x [B, ...] and c [B, M] to the shape of x."""
        scale = 1 + widen(self.linear(c))
        shape = [len(scale)] + [1] * (x.ndim - 1)
        shape[self.dim] = scale.shape[1]
        return rms_normalize(x, scale.view(shape), self.dim)


class FeedForward(nn.Module):
    """x + down(a GELU(gate)) with [a, gate] = up(norm(x)); no biases.

    Args:
        norm: applied to the input, along with what conditions it.
        width: channels of the input.
        hidden: channels of a and of gate.
        zero_init: start as the identity.
    """

    def __init__(self, norm: nn.Module, width: int, hidden: int, *, zero_init: bool) -> None:
        super().__init__()
        self.norm = norm
        self.up_proj = nn.Linear(width, 2 * hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        if zero_init:
            zero_(self.down_proj)

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        a, gate = self.up_proj(self.norm(x, *condition)).chunk(2, dim=-1)
        out: Tensor = x + self.down_proj(a * F.gelu(gate))
        return out


class MappingNetwork(nn.Module):
    """From the time embedding to the condition c of every block, [B, M] -> [B, M]."""

    def __init__(self, width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.in_norm = RMSNorm(width)
        self.blocks = nn.Sequential(
            *(FeedForward(RMSNorm(width), width, hidden, zero_init=True) for _ in range(depth))
        )
        self.out_norm = RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, M] -> [B, M]."""
        c: Tensor = self.out_norm(self.blocks(self.in_norm(x)))
        return c


def fourier_features(x: Tensor, weight: Tensor) -> Tensor:
    """Return [cos 2 pi W x, sin 2 pi W x]; x [B, n], W [M / 2, n] -> [B, M].

    The product is a sum, and no matrix product, which autocast would round to 3 digits of the time.
    """
    angles = 2 * math.pi * (widen(x)[:, None, :] * widen(weight)).sum(-1)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def axial_positions(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Centres (y, x) of the cells of a map whose longer side spans [-1, 1], [H, W, 2]."""
    cell = 2 / max(height, width)
    y = (torch.arange(height, device=device) - (height - 1) / 2) * cell
    x = (torch.arange(width, device=device) - (width - 1) / 2) * cell
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)


class AxialRoPE(nn.Module):
    """Rotary embedding of positions in a map: half of a head's channels turn with y and x.

    The frequencies run from pi to 10 pi, evenly in their logarithm, dealt out to the heads in
    turn; they are no parameters. Channel i turns with channel i + e / 4: the first e / 8 of these
    pairs by the row, the others by the column.
    """

    freqs: Tensor  # [heads, e / 8]

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        count = heads * (head_dim // 8)
        logarithms = torch.linspace(math.log(math.pi), math.log(10 * math.pi), count + 1)[:-1]
        freqs = rearrange(logarithms.exp(), "(frequency head) -> head frequency", head=heads)
        self.register_buffer("freqs", freqs.contiguous())

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Turn queries and keys, [B, heads, H, W, e] each."""
        positions = axial_positions(q.shape[-3], q.shape[-2], q.device)
        freqs = widen(self.freqs)[:, None, None, None, :]  # [heads, 1, 1, 1, e / 8]
        angles = (positions[..., None] * freqs).flatten(-2)  # [heads, H, W, e / 4]
        cos, sin = angles.cos(), angles.sin()

        def turn(x: Tensor) -> Tensor:
            pairs, rest = widen(x[..., : x.shape[-1] // 2]), x[..., x.shape[-1] // 2 :]
            a, b = pairs.chunk(2, dim=-1)
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
            return torch.cat((turned.to(x.dtype), rest), dim=-1)

        return turn(q), turn(k)


def rotary_attention(
    qkv: tuple[Tensor, Tensor, Tensor], rope: AxialRoPE, scale: Tensor | None, window: int | None
) -> Tensor:
    """Self-attention of a map with rotary positions.

    Args:
        qkv: queries, keys and values, [B, heads, H, W, e] each.
        rope: turns queries and keys.
        scale: of cosine similarity, [heads]; None for plain scores over sqrt(e).
        window: side of the neighbourhood; None for the whole map.

    Returns:
        [B, heads, H, W, e].
    """
    q, k, v = qkv
    rows = q.shape[2]
    softmax_scale = None
    if scale is not None:
        root = widen(scale).sqrt()[:, None, None, None]
        q, k = (
            (x * (root * torch.rsqrt(widen(x).square().sum(-1, True) + EPS))).to(v.dtype)
            for x in (q, k)
        )
        softmax_scale = 1.0
    q, k = rope(q, k)
    if window is not None:
        return neighborhood_attention(q, k, v, window, softmax_scale)
    q, k, v = (rearrange(x, "b heads h w e -> b heads (h w) e") for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, scale=softmax_scale)
    return rearrange(mixed, "b heads (h w) e -> b heads h w e", h=rows)
