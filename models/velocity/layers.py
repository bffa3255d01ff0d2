"""The layers that both velocity networks use: norms, rotary attention, the mapping of the time.

Statistics, angles and Fourier features are computed in float32 at least, under autocast too.
Shapes: B batch, H x W map, C channels, e head dimension, M mapping width.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from models.velocity.geometry import Geometry, rotary_frequencies
from models.velocity.neighborhood import windowed_attention

EPS = 1e-6
ROUNDED = 2.0**-8  # twice the relative rounding of bfloat16, the coarsest type of weights


def widen(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or in its own type where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = EPS) -> Tensor:
    """Divide by the root mean square of the last axis, and multiply by ``weight``.

    One kernel on CUDA, with its statistics in float32. CUDA's autocast has `rms_norm` among the
    operations that it runs in float32, which would copy the whole map to float32 before the kernel
    that would not have needed it, so it is switched off here.
    """
    width = x.shape[-1:]
    weight = None if weight is None else weight.to(x.dtype)
    if not torch.amp.is_autocast_available(x.device.type):  # the meta device
        return F.rms_norm(x, width, weight, eps)
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, width, weight, eps)


def rms_normalize(x: Tensor, dim: int = -1, eps: float = EPS) -> Tensor:
    """Divide ``x`` by its root mean square along ``dim``, its last axis or that of channels.

    The memory layout stays: in channels-last memory the channels are the last axis of a view, and
    `rms_norm` takes that; in another, the statistics are taken across the planes.
    """
    if dim in (-1, x.ndim - 1):
        return rms_norm(x, eps=eps)
    if x.ndim == 4 and dim == 1 and x.is_contiguous(memory_format=torch.channels_last):
        return rms_norm(x.permute(0, 2, 3, 1), eps=eps).permute(0, 3, 1, 2)
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=wide)
    return x * torch.rsqrt(norm.square() / x.shape[dim] + eps).to(x.dtype)


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
        return rms_norm(x, self.scale)


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
        normal = rms_normalize(x, self.dim)
        gain = self.linear(c).to(x.dtype)
        shape = [len(gain)] + [1] * (x.ndim - 1)
        shape[self.dim] = gain.shape[1]
        # In one kernel, which computes in float32: 1 + gain is never rounded to the type of x.
        return torch.addcmul(normal, normal, gain.view(shape))


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


class AxialRoPE(nn.Module):
    """Rotary embedding of positions in a map: half of a head's channels turn with y and x.

    Channel i turns with channel i + e / 4: the first e / 8 of these pairs by the row, the others by
    the column. The frequencies are no parameters, and any network's are those of
    `rotary_frequencies`: the buffer is here for the keys of published weights. The angles are not
    computed from it, so they are exact where a network's values are cast to bfloat16.
    """

    freqs: Tensor  # [heads, e / 8]

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.register_buffer("freqs", rotary_frequencies(heads, head_dim))
        self.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            _refuse_other_frequencies
        )

    def forward(self, qk: Tensor, geometry: Geometry) -> Tensor:
        """Turn queries and keys, [2, B, heads, H, W, e], by the geometry of their map."""
        cos, sin, _ = geometry
        quarter = self.head_dim // 4
        a, b, rest = torch.split(qk, [quarter, quarter, 2 * quarter], dim=-1)
        turned_a = torch.addcmul(a * cos, b, sin, value=-1)
        turned_b = torch.addcmul(b * cos, a, sin)
        return torch.cat((turned_a, turned_b, rest), dim=-1)


def _refuse_other_frequencies(
    rope: AxialRoPE,
    state_dict: dict[str, Tensor],
    prefix: str,
    _metadata: object,
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    """Refuse weights with rotary frequencies of their own, which the angles would not follow."""
    found = state_dict.get(f"{prefix}freqs")
    ours = rotary_frequencies(rope.heads, rope.head_dim, torch.device("cpu"))
    if found is None or found.is_meta or found.shape != ours.shape:
        return  # nothing to compare, or `load_state_dict` says it itself
    if not torch.allclose(found.detach().cpu().float(), ours, rtol=ROUNDED):
        errors.append(
            f"{prefix}freqs: from {found.min():.4f} to {found.max():.4f}, where this network has "
            f"the frequencies from {ours.min():.4f} to {ours.max():.4f} of `rotary_frequencies`; "
            "these weights are of a network that turns queries and keys in another way"
        )


def rotary_attention(
    qkv: Tensor, rope: AxialRoPE, scale: Tensor | None, geometry: Geometry
) -> Tensor:
    """Self-attention of a map with rotary positions.

    Args:
        qkv: queries, keys and values, [3, B, heads, H, W, e], of one type.
        rope: turns queries and keys.
        scale: of cosine similarity, [heads]; None for plain scores over sqrt(e).
        geometry: of the map: its angles and windows.

    Returns:
        [B, heads, H, W, e]; in memory the channels of all heads of a position lie together.
    """
    rows = qkv.shape[3]
    qk, values = torch.split(qkv, [2, 1])
    softmax_scale = None
    if scale is not None:
        # x / |x| is the RMS norm over sqrt(e), with epsilon / e under the root of the mean.
        e = qkv.shape[-1]
        root = (widen(scale) / e).sqrt().to(qk.dtype)
        qk = rms_norm(qk, eps=EPS / e) * root[:, None, None, None]
        softmax_scale = 1.0
    q, k = rope(qk, geometry).unbind()
    # PyTorch's fused kernels take no tensor whose channels are apart, as in NCHW memory.
    v = values[0] if values.stride(-1) == 1 else values[0].contiguous()
    if geometry.windows is not None:
        return windowed_attention(q, k, v, geometry.windows, softmax_scale)
    q, k, v = (rearrange(x, "b heads h w e -> b heads (h w) e") for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, scale=softmax_scale)
    return rearrange(mixed, "b heads (h w) e -> b heads h w e", h=rows)
