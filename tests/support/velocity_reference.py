"""The velocity networks a second time, as formulas over state dicts: dense, slow, in float64.

Nothing of `models` is imported: a mistake there cannot be repeated here by sharing its code.
Tensors are [B, d, H, W]; ``w`` maps the keys of a state dict, below a prefix, to tensors.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = dict[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)


def randomize(network: Network, seed: int) -> Network:
    """Give every value but the rotary frequencies a random one, zero-initialised weights too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            if not name.endswith("freqs"):
                value.copy_(0.2 * noise if value.ndim > 1 else 1 + 0.3 * noise.tanh())
    return network


def below(w: State, prefix: str) -> State:
    """Return the tensors below a prefix, without it."""
    return {key.removeprefix(prefix): w[key] for key in w if key.startswith(prefix)}


def window_mask(height: int, width: int, kernel_size: int) -> Tensor:
    """Whether a query (first axis) sees a key (second), both [H W], position by position."""
    mask = torch.zeros(height, width, height, width, dtype=torch.bool)
    k_y, k_x = min(kernel_size, height), min(kernel_size, width)
    for y in range(height):
        for x in range(width):
            top = min(max(y - k_y // 2, 0), height - k_y)
            left = min(max(x - k_x // 2, 0), width - k_x)
            mask[y, x, top : top + k_y, left : left + k_x] = True
    return mask.reshape(height * width, height * width)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Softmax over the visible keys, with the whole N x N matrix; [B, heads, H, W, e]."""
    scores = torch.einsum("bhyxe,bhuwe->bhyxuw", q, k).flatten(4).flatten(2, 3) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return torch.einsum("bhnm,bhme->bhne", weights, v.flatten(2, 3)).unflatten(2, q.shape[2:4])


def rms(x: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """Norm over axis 1; the scale is [d] or [B, d]."""
    scale = scale if scale.ndim > 1 else scale[None]
    while scale.ndim < x.ndim:
        scale = scale[..., None]
    return x / torch.sqrt((x * x).mean(1, keepdim=True) + eps) * scale


def gelu(x: Tensor) -> Tensor:
    """Return x times the normal distribution function."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply axis 1 by a matrix."""
    return torch.einsum("oi,bi...->bo...", weight.flatten(1), x)


def mapping(x: Tensor, w: State) -> Tensor:
    """Compute the condition from the time embedding."""
    x = rms(x, w["in_norm.scale"])
    block = 0
    while f"blocks.{block}.norm.scale" in w:
        b = below(w, f"blocks.{block}.")
        value, gate = linear(rms(x, b["norm.scale"]), b["up_proj.weight"]).chunk(2, dim=1)
        x = x + linear(value * gelu(gate), b["down_proj.weight"])
        block += 1
    return rms(x, w["out_norm.scale"])


def fourier(x: Tensor, weight: Tensor) -> Tensor:
    """Cosines, then sines, of 2 pi W x; x [B, n]."""
    angles = 2 * math.pi * torch.einsum("bn,mn->bm", x, weight)
    return torch.cat((torch.cos(angles), torch.sin(angles)), dim=1)


def rotate(x: Tensor, freqs: Tensor) -> Tensor:
    """Turn the pairs of channels (i, i + e/4) as complex numbers; x [B, heads, H, W, e]."""
    _, heads, H, W, e = x.shape
    half = max(H, W) / 2
    out = x.clone()
    for head in range(heads):
        for y in range(H):
            for z in range(W):
                place = ((y + 0.5 - H / 2) / half, (z + 0.5 - W / 2) / half)
                angles = torch.cat([p * freqs[head] for p in place])
                pairs = torch.complex(x[:, head, y, z, : e // 4], x[:, head, y, z, e // 4 : e // 2])
                turned = pairs * torch.exp(1j * angles)
                out[:, head, y, z, : e // 2] = torch.cat((turned.real, turned.imag), dim=-1)
    return out


def attend(qkv: Tensor, freqs: Tensor, scale: Tensor | None, window: int | None) -> Tensor:
    """Self-attention of [B, 3 d, H, W]; with a scale by cosine similarity."""
    heads = len(freqs)
    q, k, v = qkv.unflatten(1, (3, heads, -1)).permute(1, 0, 2, 4, 5, 3)
    factor = q.shape[-1] ** -0.5
    if scale is not None:
        q, k = (x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        q, factor = q * scale[:, None, None, None], 1.0
    mask = None if window is None else window_mask(*q.shape[2:4], window)
    mixed = dense_attention(rotate(q, freqs), rotate(k, freqs), v, mask, factor)
    return mixed.permute(0, 1, 4, 2, 3).flatten(1, 2)


def hdit(w: State, x_t: Tensor, t: Tensor, windows: Sequence[int | None], patch: int) -> Tensor:
    """Evaluate HDiT; ``windows`` has the side of each level's neighbourhood, or None."""
    time = linear(fourier(t[:, None], w["time_emb.weight"]), w["time_in_proj.weight"])
    nothing = fourier(torch.zeros(1, 9, dtype=x_t.dtype), w["aug_emb.weight"])
    c = mapping(time + linear(nothing, w["aug_in_proj.weight"]), below(w, "mapping."))

    def blocks(x: Tensor, name: str, level: int) -> Tensor:
        number = 0
        while f"{name}.{number}.ff.up_proj.weight" in w:
            b = below(w, f"{name}.{number}.")
            y = rms(x, 1 + linear(c, b["self_attn.norm.linear.weight"]))
            y = linear(y, b["self_attn.qkv_proj.weight"])
            y = attend(y, b["self_attn.pos_emb.freqs"], b.get("self_attn.scale"), windows[level])
            x = x + linear(y, b["self_attn.out_proj.weight"])
            y = linear(rms(x, 1 + linear(c, b["ff.norm.linear.weight"])), b["ff.up_proj.weight"])
            value, gate = y.chunk(2, dim=1)
            x = x + linear(value * gelu(gate), b["ff.down_proj.weight"])
            number += 1
        return x

    def merge(x: Tensor, p: int) -> Tensor:
        return torch.cat([x[:, :, i::p, j::p] for i in range(p) for j in range(p)], dim=1)

    def split(x: Tensor, p: int) -> Tensor:
        B, d, H, W = x.shape
        out = x.new_zeros(B, d // (p * p), H * p, W * p)
        for place, part in enumerate(x.chunk(p * p, dim=1)):
            out[:, :, place // p :: p, place % p :: p] = part
        return out

    x = linear(merge(x_t, patch), w["patch_in.proj.weight"])
    last, skips = len(windows) - 1, []
    for level in range(last):
        skips.append(blocks(x, f"down_levels.{level}", level))
        x = linear(merge(skips[-1], 2), w[f"merges.{level}.proj.weight"])
    x = blocks(x, "mid_level", last)
    for level in reversed(range(last)):
        x = split(linear(x, w[f"splits.{level}.proj.weight"]), 2)
        fac = w[f"splits.{level}.fac"]
        x = blocks((1 - fac) * skips[level] + fac * x, f"up_levels.{level}", level)
    return split(linear(rms(x, w["out_norm.scale"]), w["patch_out.proj.weight"]), patch)


def looformer(w: State, x_t: Tensor, t: Tensor, windows: Sequence[int | None]) -> Tensor:
    """Evaluate the recommended LooUFormer: pixel unshuffle + 1 x 1, and nearest + 3 x 3."""
    time = fourier(t[:, None], w["time_proj.weight"][:, None])
    c = mapping(linear(time, w["timestep_embedder.weight"]), below(w, "mapping."))

    def conv(x: Tensor, b: State, name: str) -> Tensor:
        weight = b[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(
            x, weight, b.get(f"{name}.bias"), padding=weight.shape[-1] // 2, groups=groups
        )

    def project(x: Tensor, b: State, name: str) -> Tensor:
        return conv(conv(x, b, f"{name}.conv"), b, f"{name}.dwconv")

    def norm(x: Tensor, b: State, name: str) -> Tensor:
        return rms(x, 1 + linear(c, b[f"{name}.linear.weight"]) + b[f"{name}.linear.bias"])

    def blocks(x: Tensor, name: str, level: int) -> Tensor:
        number = 0
        while f"{name}.{number}.ff.down_proj.weight" in w:
            b = below(w, f"{name}.{number}.")
            y = project(norm(x, b, "norm1"), b, "attn.qkv_proj")
            y = attend(y, b["attn.pos_emb.freqs"], b.get("attn.scale"), windows[level])
            x = x + conv(y, b, "attn.out_proj")
            gate, value = project(norm(x, b, "norm2"), b, "ff.project_in").chunk(2, dim=1)
            x = x + conv(gelu(gate) * value, b, "ff.down_proj")
            number += 1
        return x

    x = conv(x_t, w, "proj_in.proj")
    last, skips = len(windows) - 1, []
    for level in range(last):
        skips.append(blocks(x, f"down_blocks.{level}", level))
        parts = [skips[-1][:, :, i::2, j::2] for i in range(2) for j in range(2)]
        x = conv(torch.stack(parts, dim=2).flatten(1, 2), w, f"downs.{level}.conv")
    x = blocks(x, "mid_block", last)
    for level in reversed(range(last)):
        x = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), w, f"ups.{level}.conv")
        fac = w[f"ups.{level}.fac"]
        x = blocks((1 - fac) * skips[level] + fac * x, f"up_blocks.{level}", level)
    return conv(rms(x, w["out_norm.weight"], eps=2.0**-23), w, "proj_out.proj")
