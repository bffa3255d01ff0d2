"""HDiT, the velocity network of PMRF: an hourglass transformer over tokens (Crowson et al. 2024).

PMRF's published weights fit, see `load_pmrf`. Module names and their order follow PMRF's, for the
names are the keys of its weights, and the order is all that names its averaged weights. Under
autocast the Fourier features of t and the positions stay in float32, unlike there, where bfloat16
leaves a few hundred different times; in float32 the results are the same.

Shapes: B batch; H x W the map of one level, d its width, M the mapping width.
"""

from pathlib import Path

import torch
from einops import rearrange
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.checkpoint import load_strict, read_state_dict
from models.configuration import STRICT
from models.ema import read_torch_ema
from models.velocity.geometry import Geometry
from models.velocity.hourglass import (
    Hourglass,
    HourglassConfig,
    join_condition,
    level_geometries,
)
from models.velocity.layers import (
    AdaRMSNorm,
    AxialRoPE,
    FeedForward,
    MappingNetwork,
    RMSNorm,
    fourier_features,
    rotary_attention,
    zero_,
)

AUGMENTATIONS = 9  # inputs of k-diffusion's augmentation embedding, which PMRF keeps at zero


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class HDiTConfig(HourglassConfig):
    """One HDiT. The defaults are PMRF's at 512 px."""

    patch_size: PositiveInt = 4
    """Pixels per side of a token of the first level."""


PRESETS: dict[str, HDiTConfig] = {
    "pmrf-512": HDiTConfig(),  # "ImageNet256Sp4": 160,460,210 parameters, 0.519 TFLOP at 512 px
    "pmrf-256": HDiTConfig(  # "XL2", of PMRF's controlled experiments: 121.5 M
        widths=(384, 768), depths=(2, 11), attentions=("neighborhood", "global")
    ),
    "small-128": HDiTConfig(  # for two cores and images of 128 pixels; as large as small-c8
        widths=(48, 96),
        depths=(1, 2),
        attentions=("neighborhood", "global"),
        head_dim=24,
        mapping_width=96,
        mapping_depth=1,
    ),
    "tiny": HDiTConfig(
        widths=(32, 64),
        depths=(1, 1),
        attentions=("neighborhood", "global"),
        head_dim=16,
        kernel_size=3,
        mapping_width=32,
        mapping_depth=1,
        patch_size=2,
    ),
}


class HDiT(nn.Module):
    """The velocity v_t(x_t), or v_t(x_t | cond)."""

    def __init__(self, config: HDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # True: repeat each block's forward pass in backward
        M, widths, p = config.mapping_width, config.widths, config.patch_size
        self.patch_in = TokenMerge(config.in_channels + config.condition_channels, widths[0], p)
        self.time_emb = FourierFeatures(1, M)
        self.time_in_proj = nn.Linear(M, M, bias=False)
        self.aug_emb = FourierFeatures(AUGMENTATIONS, M)
        self.aug_in_proj = nn.Linear(M, M, bias=False)
        self.mapping = MappingNetwork(M, M * config.ff_ratio, config.mapping_depth)
        between = range(len(widths) - 1)
        self.down_levels = nn.ModuleList(_level(config, level) for level in between)
        self.up_levels = nn.ModuleList(_level(config, level) for level in between)
        self.mid_level = _level(config, len(widths) - 1)
        self.merges = nn.ModuleList(TokenMerge(widths[i], widths[i + 1], 2) for i in between)
        self.splits = nn.ModuleList(TokenSplit(widths[i + 1], widths[i]) for i in between)
        self.out_norm = RMSNorm(widths[0])
        self.patch_out = PatchOut(widths[0], config.in_channels, p)
        if config.zero_init:
            zero_(self.patch_out.proj)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Predict the velocity.

        Args:
            x_t: [B, C, H, W]; H and W divisible by the patch size times 2 per further level.
            t: time, [B], in [0, 1]; 0 is the source.
            cond: [B, condition_channels, H, W], for conditional flows only.

        Returns:
            [B, C, H, W].

        Raises:
            ValueError: a shape that this network does not take.
        """
        factor = self.config.patch_size << (len(self.config.widths) - 1)
        x = rearrange(join_condition(self.config, factor, x_t, t, cond), "b c h w -> b h w c")
        c = self._condition(t)
        levels = Hourglass(
            self.down_levels, self.merges, self.mid_level, self.splits, self.up_levels
        )
        x = self.patch_in(x)
        geometries = level_geometries(self.config, x.shape[1], x.shape[2], x)
        x = levels.run(x, c, geometries, recompute=self.activation_checkpointing)
        velocity: Tensor = rearrange(self.patch_out(self.out_norm(x)), "b h w c -> b c h w")
        return velocity

    def _condition(self, t: Tensor) -> Tensor:
        """Embed the time, [B] -> [B, M]; no augmentation adds a learned constant."""
        no_augmentation = t.new_zeros(1, AUGMENTATIONS)
        time = self.time_in_proj(self.time_emb(t[:, None]))
        c: Tensor = self.mapping(time + self.aug_in_proj(self.aug_emb(no_augmentation)))
        return c


def load_pmrf(model: HDiT, path: str | Path, *, averaged: bool = True) -> None:
    """Load PMRF's velocity network from its Lightning checkpoint, or from its hub's safetensors.

    Args:
        model: of preset ``pmrf-512``, for the published weights.
        path: the file; beside the velocity network it may hold the predictor and metrics.
        averaged: take the averaged weights of a Lightning checkpoint. PMRF means to, but a context
            manager that is not entered makes it test the raw ones. Safetensors hold one set only.

    Raises:
        CheckpointError: missing, damaged, or of another architecture.
    """
    if Path(path).suffix == ".safetensors":
        state_dict = read_state_dict(path, prefix="model.")
    elif averaged:
        state_dict = read_torch_ema(path, model, prefix="model.")
    else:
        state_dict = read_state_dict(path, key="state_dict", prefix="model.")
    width = model.config.mapping_width
    no_augmentation = {  # adds zero where the weights leave out the embedding of augmentations
        "aug_emb.weight": torch.zeros(width // 2, AUGMENTATIONS),
        "aug_in_proj.weight": torch.zeros(width, width),
    }
    load_strict(model, no_augmentation | state_dict, path)


def _level(config: HDiTConfig, level: int) -> nn.ModuleList:
    return nn.ModuleList(Block(config, level) for _ in range(config.depths[level]))


class Block(nn.Module):
    """Attention, then feed-forward; each adds to the stream."""

    def __init__(self, config: HDiTConfig, level: int) -> None:
        super().__init__()
        d = config.widths[level]
        self.self_attn = Attention(config, level)
        norm = AdaRMSNorm(d, config.mapping_width)
        self.ff = FeedForward(norm, d, d * config.ff_ratio, zero_init=config.zero_init)

    def forward(self, x: Tensor, c: Tensor, geometry: Geometry) -> Tensor:
        """Map x [B, H, W, d] and c [B, M] to [B, H, W, d]; see `level_geometry`."""
        out: Tensor = self.ff(self.self_attn(x, c, geometry), c)
        return out


class Attention(nn.Module):
    """x + the attention of one level."""

    scale: Tensor | None

    def __init__(self, config: HDiTConfig, level: int) -> None:
        super().__init__()
        d = config.widths[level]
        heads = d // config.head_dim
        scale = nn.Parameter(torch.full((heads,), 10.0)) if config.cosine_similarity else None
        self.register_parameter("scale", scale)
        self.norm = AdaRMSNorm(d, config.mapping_width)
        self.qkv_proj = nn.Linear(d, 3 * d, bias=False)
        self.pos_emb = AxialRoPE(heads, config.head_dim)
        self.out_proj = nn.Linear(d, d, bias=False)
        if config.zero_init:
            zero_(self.out_proj)

    def forward(self, x: Tensor, c: Tensor, geometry: Geometry) -> Tensor:
        """Map x [B, H, W, d] and c [B, M] to [B, H, W, d]."""
        qkv = rearrange(
            self.qkv_proj(self.norm(x, c)),
            "b h w (three heads e) -> b h w three heads e",
            three=3,
            e=self.pos_emb.head_dim,
        )
        mixed = rotary_attention(qkv, self.pos_emb, self.scale, geometry)
        out: Tensor = x + self.out_proj(mixed.flatten(3))
        return out


class FourierFeatures(nn.Module):
    """Random Fourier features, drawn once: [B, n] -> [B, M]."""

    weight: Tensor  # [M / 2, n]

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(width // 2, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, n] -> [B, M]."""
        return fourier_features(x, self.weight)


class TokenMerge(nn.Module):
    """Project each p x p patch of tokens to one token."""

    def __init__(self, width: int, out_width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(width * patch_size**2, out_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H p, W p, d] -> [B, H, W, d']."""
        p = self.patch_size
        merged: Tensor = self.proj(rearrange(x, "b (h p) (w q) d -> b h w (p q d)", p=p, q=p))
        return merged


class PatchOut(nn.Module):
    """Project each token to a p x p patch."""

    def __init__(self, width: int, out_width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(width, out_width * patch_size**2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, d] -> [B, H p, W p, d']."""
        return _split(self.proj(x), self.patch_size)


class TokenSplit(nn.Module):
    """Project each token to 2 x 2, and interpolate from the skip to them by a learned factor."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, out_width * 4, bias=False)
        self.fac = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map x [B, H, W, d] and skip [B, 2 H, 2 W, d'] to [B, 2 H, 2 W, d']."""
        x = _split(self.proj(x), 2)
        return torch.lerp(skip.to(x.dtype), x, self.fac.to(x.dtype))


def _split(x: Tensor, patch_size: int) -> Tensor:
    """Unfold the channels of each token to a patch, [B, H, W, p p d] -> [B, H p, W p, d]."""
    p = patch_size
    split: Tensor = rearrange(x, "b h w (p q d) -> b (h p) (w q) d", p=p, q=p)
    return split
