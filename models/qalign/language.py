"""Q-Align's reader: LLaMA-2 with modality-adaptive modules (mPLUG-Owl2).

RMSNorms, keys and values have one set of weights for text and one for vision tokens; the rest is
LLaMA. The vision tokens are one contiguous span, so routing is slicing. Causal everywhere, inside
the image too. Module names are the published state dict's keys.

Shapes: B images, S tokens in the call, P tokens before it, L width, H heads, D head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, rotate_half

from models.qalign.vision import check_divides


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageConfig:
    """The top level of config.json; the defaults are the original class's, hence the 7B model's."""

    vocab_size: int = 32000
    hidden_size: int = 4096  # L
    intermediate_size: int = 11008  # of the MLP
    num_hidden_layers: int = 32
    num_attention_heads: int = 32  # H
    num_key_value_heads: int = 32
    rms_norm_eps: float = 1e-6  # not LLaMA-2's 1e-5
    rope_theta: float = 10000.0
    hidden_act: ClassVar[str] = "silu"
    mlp_bias: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_divides("config.json", self.hidden_size, self.num_attention_heads)
        check_divides("num_key_value_heads", self.num_attention_heads, self.num_key_value_heads)

    @property
    def head_dim(self) -> int:
        """Width D of one head."""
        return self.hidden_size // self.num_attention_heads


class Span(NamedTuple):
    """Where the vision tokens stand among the tokens of a call: [start, stop)."""

    start: int
    stop: int


NO_VISION = Span(0, 0)


class Multiway(nn.Module):
    """Two copies of a module: way 0 for text tokens, way 1 for vision tokens."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.multiway = nn.ModuleList([make(), make()])

    def forward(self, x: Tensor, vision: Span) -> Tensor:
        """Send each token of [B, S, L] its way; returns [B, S, ...] in the same order."""
        text_way, vision_way = self.multiway
        parts = (
            (text_way, x[:, : vision.start]),
            (vision_way, x[:, vision.start : vision.stop]),
            (text_way, x[:, vision.stop :]),
        )
        return torch.cat([way(part) for way, part in parts if part.shape[1]], dim=1)


class KeysValues(NamedTuple):
    """One layer's keys and values, each [1, H, P, D], of tokens that come before a call's."""

    keys: Tensor
    values: Tensor


class Rotary(NamedTuple):
    """Cosines and sines [S, D] of rotary positions, in the working dtype."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, config: LanguageConfig, first: int, count: int, like: Tensor) -> Self:
        """Compute positions first, ..., first + count - 1 in float32, on the device of ``like``."""
        D = config.head_dim
        frequency = config.rope_theta ** -(torch.arange(0, D, 2, device=like.device).float() / D)
        position = torch.arange(first, first + count, device=like.device).float()
        angle = torch.outer(position, frequency).repeat(1, 2)
        return cls(angle.cos().to(like.dtype), angle.sin().to(like.dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate [B, H, S', D]; S' < S are the last tokens."""
        last = slice(-x.shape[2], None)
        rotated: Tensor = x * self.cos[last] + rotate_half(x) * self.sin[last]
        return rotated


class Attention(nn.Module):
    """LLaMA attention with separate key and value weights for the two modalities."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = Multiway(partial(nn.Linear, width, kv_width, bias=False))
        self.v_proj = Multiway(partial(nn.Linear, width, kv_width, bias=False))
        self.o_proj = nn.Linear(width, width, bias=False)

    def keys_values(self, x: Tensor, vision: Span, rotary: Rotary) -> KeysValues:
        """Compute keys (rotated) and values of tokens [B, S, L]."""
        keys, values = (
            rearrange(project(x, vision), "b s (h d) -> b h s d", d=self.head_dim)
            for project in (self.k_proj, self.v_proj)
        )
        return KeysValues(rotary(keys), values)

    def forward(self, x: Tensor, past: KeysValues, rotary: Rotary) -> Tensor:
        """Attend causally from [B, S', L], the last S' tokens, to ``past`` of all S tokens."""
        q = rotary(rearrange(self.q_proj(x), "b s (h d) -> b h s d", d=self.head_dim))
        seen = past.keys.shape[2] - x.shape[1]  # before the first query
        mask = torch.ones(x.shape[1], past.keys.shape[2], dtype=torch.bool, device=x.device)
        attended = F.scaled_dot_product_attention(
            q, past.keys, past.values, mask.tril(seen), enable_gqa=q.shape[1] != past.keys.shape[1]
        )
        out: Tensor = self.o_proj(rearrange(attended, "b h s d -> b s (h d)"))
        return out


class LanguageLayer(nn.Module):
    """One LLaMA block; MLP and RMSNorm are transformers' own."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        norm = partial(LlamaRMSNorm, config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = Multiway(norm)
        self.post_attention_layernorm = Multiway(norm)

    def forward(
        self, x: Tensor, vision: Span, rotary: Rotary, prefix: KeysValues | None, last_row: bool
    ) -> tuple[Tensor, KeysValues]:
        """Transform [B, S, L]; with ``last_row`` only the last token, which must be text.

        Returns:
            The transformed tokens, [B, S, L] or [B, 1, L], and the call's own keys and values.
        """
        h = self.input_layernorm(x, vision)
        own = self.self_attn.keys_values(h, vision, rotary)
        if last_row:
            x, h, vision = x[:, -1:], h[:, -1:], NO_VISION
        x = x + self.self_attn(h, after(prefix, own), rotary)
        return x + self.mlp(self.post_attention_layernorm(x, vision)), own


def after(prefix: KeysValues | None, own: KeysValues) -> KeysValues:
    """Put a shared prefix [1, H, P, D] before every image's own keys and values [B, H, S, D]."""
    if prefix is None:
        return own
    B = len(own.keys)
    keys, values = (
        torch.cat([shared.expand(B, -1, -1, -1), mine], dim=2)
        for shared, mine in zip(prefix, own, strict=True)
    )
    return KeysValues(keys, values)
