"""Q-Align's eye: CLIP-style ViT and visual abstractor, image -> 64 tokens and an end-of-image.

Module names are the published state dict's keys. Shapes: B images, N = 1 + (image / patch)^2 vision
tokens (class token first), Q queries, W vision width, L width of the language model, H heads.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPMLP


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """``visual_config.visual_model`` of config.json; the defaults are the original class's."""

    hidden_size: int = 1024  # W
    intermediate_size: int = 4096  # of the MLP
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 448  # pixels
    patch_size: int = 14  # pixels
    layer_norm_eps: float = 1e-6
    hidden_act: ClassVar[str] = "quick_gelu"  # whatever config.json says: the original ignores it

    def __post_init__(self) -> None:
        check_divides("visual_model", self.hidden_size, self.num_attention_heads)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"visual_model.image_size={self.image_size} is not a multiple of "
                f"patch_size={self.patch_size}: config.json is damaged"
            )

    @property
    def tokens(self) -> int:
        """Count N: the patches and the class token."""
        return 1 + (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True, slots=True)
class AbstractorConfig:
    """``visual_config.visual_abstractor`` of config.json; the defaults are the original class's."""

    num_learnable_queries: int = 64  # Q
    hidden_size: int = 1024  # W
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    intermediate_size: int = 2816  # of the gated MLP
    layer_norm_eps: float = 1e-6  # of ffn_ln alone; the other norms keep PyTorch's 1e-5
    encoder_hidden_size: int = 1024  # width of the vision tokens
    grid_size: int = 32  # patches along one side

    def __post_init__(self) -> None:
        check_divides("visual_abstractor", self.hidden_size, self.num_attention_heads)
        if self.hidden_size != self.encoder_hidden_size:
            raise ValueError(
                f"visual_abstractor.hidden_size={self.hidden_size} must equal encoder_hidden_size="
                f"{self.encoder_hidden_size}: queries and vision tokens are attended to as one list"
            )


def check_divides(part: str, width: int, heads: int) -> None:
    """Raise ValueError unless ``heads`` divides ``width``."""
    if width % heads:
        raise ValueError(
            f"{part}: {heads} attention heads do not divide hidden_size={width}; "
            "config.json is damaged"
        )


class VisionEmbeddings(nn.Module):
    """Pixels -> tokens: one linear map per patch, class token in front, learned positions, norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embedding = nn.Parameter(torch.empty(1, config.tokens, width))
        self.patch_embed = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.pre_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed [B, 3, image, image]; returns [B, N, W]."""
        patches = rearrange(self.patch_embed(pixels), "b w y x -> b (y x) w")
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], dim=1)
        out: Tensor = self.pre_layernorm(tokens + self.position_embedding)
        return out


class VisionAttention(nn.Module):
    """Full self-attention; q, k and v of one head are neighbours in ``query_key_value``."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over [B, N, W]."""
        packed = self.query_key_value(x)
        q, k, v = rearrange(packed, "b n (h three d) -> three b h n d", h=self.heads, three=3)
        attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.dense(rearrange(attended, "b h n d -> b n (h d)"))
        return out


class Layers(nn.Module):
    """A numbered list of layers, under the name that the checkpoint gives it."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class VisionLayer(nn.Module):
    """One pre-norm transformer block; the MLP is transformers' CLIPMLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.self_attn = VisionAttention(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [B, N, W]."""
        x = x + self.self_attn(self.input_layernorm(x))
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class VisionTower(nn.Module):
    """ViT whose last layer's tokens all go on, class token included, normalised."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = Layers(VisionLayer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalised [B, 3, image, image]; returns [B, N, W]."""
        x = self.embeddings(pixels)
        for layer in self.encoder.layers:
            x = layer(x)
        out: Tensor = self.post_layernorm(x)
        return out


class AbstractorAttention(nn.Module):
    """Queries attend to themselves and the vision tokens; positions enter Q and K, never V.

    The position tables are buffers of the checkpoint, rounded as it stores them.
    """

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_pos_embed = nn.Buffer(torch.empty(config.num_learnable_queries, width))
        self.k_pos_embed = nn.Buffer(torch.empty(1 + config.grid_size**2, width))
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, queries: Tensor, vision: Tensor) -> Tensor:
        """Attend from ``queries`` [B, Q, W] to themselves and to ``vision`` [B, N, W]."""
        context = torch.cat([queries, vision], dim=1)
        positions = torch.cat([self.q_pos_embed, self.k_pos_embed])
        q = self.query(queries + self.q_pos_embed)
        k = self.key(context + positions)
        v = self.value(context)
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=self.heads) for x in (q, k, v))
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


class GatedMLP(nn.Module):
    """w2(LN(silu(w1 z) * w3 z)), with biases and a norm before the way back."""

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, width)
        self.w3 = nn.Linear(width, hidden)
        self.ffn_ln = nn.LayerNorm(hidden, eps=config.layer_norm_eps)

    def forward(self, z: Tensor) -> Tensor:
        """Transform [B, Q, W]."""
        out: Tensor = self.w2(self.ffn_ln(F.silu(self.w1(z)) * self.w3(z)))
        return out


class AbstractorOutput(nn.Module):
    """What follows the attention of an abstractor layer: projection, residual, MLP, residual."""

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.mlp = GatedMLP(config)

    def forward(self, h: Tensor, attended: Tensor) -> Tensor:
        """Add the projected attention [B, Q, W] to ``h`` [B, Q, W], then the MLP's answer."""
        y = h + self.out_proj(attended)
        out: Tensor = y + self.mlp(self.norm2(y))
        return out


class CrossAttention(nn.Module):
    """What one layer does. Its residual starts from the *normalised* queries."""

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.attention = AbstractorAttention(config)
        self.output = AbstractorOutput(config)
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.normk = nn.LayerNorm(config.encoder_hidden_size)

    def forward(self, x: Tensor, vision: Tensor) -> Tensor:
        """Refine queries [B, Q, W] with the vision tokens [B, N, W]."""
        h = self.norm1(x)
        out: Tensor = self.output(h, self.attention(h, self.normk(vision)))
        return out


class AbstractorLayer(nn.Module):
    """One layer of the abstractor; the checkpoint has its parts one level down."""

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.crossattention = CrossAttention(config)

    def forward(self, x: Tensor, vision: Tensor) -> Tensor:
        """Refine queries [B, Q, W] with the vision tokens [B, N, W]."""
        out: Tensor = self.crossattention(x, vision)
        return out


class VisualAbstractor(nn.Module):
    """Learned queries read the vision tokens; a constant end-of-image token closes the list."""

    def __init__(self, config: AbstractorConfig, language_width: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.query_embeds = nn.Parameter(torch.empty(1, config.num_learnable_queries, width))
        self.vit_eos = nn.Parameter(torch.empty(1, 1, language_width))
        self.encoder = Layers(AbstractorLayer(config) for _ in range(config.num_hidden_layers))
        self.visual_fc = nn.Linear(width, language_width)

    def forward(self, vision: Tensor) -> Tensor:
        """Condense vision tokens [B, N, W]; returns [B, Q + 1, L]."""
        x = self.query_embeds.expand(len(vision), -1, -1)
        for layer in self.encoder.layers:
            x = layer(x, vision)
        return torch.cat([self.visual_fc(x), self.vit_eos.expand(len(vision), -1, -1)], dim=1)


def sincos(width: int, positions: Tensor) -> Tensor:
    """Encode positions [P] as [sin(p w_0), ..., cos(p w_0), ...], w_j = 10000^(-2j / width)."""
    half = torch.arange(width // 2, dtype=torch.float32) / (width // 2)
    angles = positions[:, None] * 10000.0**-half
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def position_tables(config: AbstractorConfig) -> dict[str, Tensor]:
    """Compute the abstractor's position buffers, float32, for a checkpoint that lacks them.

    The class token's row is zero; a patch's is its column's code, then its row's.
    """
    width, side = config.hidden_size, torch.arange(config.grid_size, dtype=torch.float32)
    y, x = torch.meshgrid(side, side, indexing="ij")
    patches = torch.cat([sincos(width // 2, x.flatten()), sincos(width // 2, y.flatten())], dim=1)
    queries = torch.arange(config.num_learnable_queries, dtype=torch.float32)
    return {
        "q_pos_embed": sincos(width, queries),
        "k_pos_embed": torch.cat([torch.zeros(1, width), patches]),
    }
