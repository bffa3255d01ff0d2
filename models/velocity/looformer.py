"""LooUFormer, the authors' velocity network of Latent-PMRF: HDiT with depth-wise convolutions.

After `models.velocity.hdit`, with these differences: convolutions 3 x 3 per channel after the
projections of attention and feed-forward; biases; plain scores in place of cosine similarity;
convolutions to resize and at both ends, with patches of one pixel; in a feed-forward layer the
first half is the gate; no augmentation branch; not zero at the start. Nothing was published for it:
the widths and the resizing layers are those that best explain the paper's 151.2 M parameters (150.7
M).

The names are the keys of the authors' class. Its checkpoints, once there are any, predict the
opposite velocity at the opposite time: wrap them by `rectified_flow.from_sigma_convention`.

Shapes: B batch; H x W the map of one level, d its width, M the mapping width.

There are two memory layouts, of which a GPU has to say which is faster; the velocities agree to
rounding. Channels-last (`LooUFormer.channels_last`): each norm is one kernel, the 1 x 1
convolutions are matrix products of the map as it lies, and attention takes queries, keys and values
without a copy. NCHW, the default: the convolutions of 3 x 3 per channel are PyTorch's own kernels;
a norm takes its statistics across the planes, and attention copies the values.
"""

from collections import OrderedDict
from typing import Literal

import torch
from einops import rearrange
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from models.autocast import repeat_pixels
from models.configuration import STRICT
from models.pixel_shuffle import pixel_unshuffle
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
    MappingNetwork,
    fourier_features,
    rms_normalize,
    rotary_attention,
    zero_,
)

Downsample = Literal["strided_conv", "unshuffle_conv", "conv_unshuffle"]
Upsample = Literal["nearest_conv", "conv_shuffle"]
OUT_NORM_EPS = 2.0**-23  # what "the type's epsilon" of the authors' class is in float32


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class LooUFormerConfig(HourglassConfig):
    """One LooUFormer. The defaults are the recommended variant for latents of 32 channels."""

    in_channels: PositiveInt = 32
    """Channels C of the latent."""
    depths: tuple[PositiveInt, ...] = (2, 4, 6)
    """Blocks of each level, per direction (paper Sec. 6.1)."""
    cosine_similarity: bool = False
    """Normalise queries and keys, and learn the scale of the scores per head, as HDiT does."""
    zero_init: bool = False
    """Start each block, and the velocity, from zero, as HDiT does."""
    depthwise: bool = True
    """Convolve the projections of attention and feed-forward per channel, 3 x 3 (Sec. 6.1)."""
    bias: bool = True
    """Biases everywhere but in the embedding of time."""
    downsample: Downsample = "unshuffle_conv"
    """Halve the map by a strided 3 x 3 convolution, or by pixel unshuffle before or after one."""
    downsample_kernel: Literal[1, 3] = 1
    """Kernel of the downsampling convolution; 3 for the strided one."""
    upsample: Upsample = "nearest_conv"
    """Double the map by repeating pixels before a convolution, or by pixel shuffle after one."""
    upsample_kernel: Literal[1, 3] = 3
    """Kernel of the upsampling convolution."""

    def __post_init__(self) -> None:
        """Refuse what no network can be built from."""
        HourglassConfig.__post_init__(self)
        if self.downsample == "strided_conv" and self.downsample_kernel != 3:
            raise ValueError(
                f"downsample_kernel={self.downsample_kernel}: a strided convolution needs 3, or "
                "it skips pixels"
            )


PRESETS: dict[str, LooUFormerConfig] = {
    "latent-c16": LooUFormerConfig(in_channels=16),  # 150.626 M
    "latent-c24": LooUFormerConfig(in_channels=24),  # 150.663 M
    "latent-c32": LooUFormerConfig(),  # 150,700,194 parameters, 0.158 TFLOP at 512 px
    "latent-c48": LooUFormerConfig(in_channels=48),  # 150.774 M
    # for two cores and latents of 32 x 32
    **{
        f"small-c{channels}": LooUFormerConfig(
            in_channels=channels,
            widths=(48, 96),
            depths=(1, 2),
            attentions=("neighborhood", "global"),
            head_dim=24,
            mapping_width=96,
            mapping_depth=1,
        )
        for channels in (4, 8, 16)
    },
    "tiny": LooUFormerConfig(  # for tests and smoke runs
        in_channels=4,
        widths=(32, 64),
        depths=(1, 1),
        attentions=("neighborhood", "global"),
        head_dim=16,
        kernel_size=3,
        mapping_width=32,
        mapping_depth=1,
    ),
}


class LooUFormer(nn.Module):
    """The velocity v_t(z_t), or v_t(z_t | cond), of latents."""

    def __init__(self, config: LooUFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # True: repeat each block's forward pass in backward
        self.channels_last = False  # True: compute in that layout, whatever the layout of x_t is
        M, widths, bias = config.mapping_width, config.widths, config.bias
        frequencies = nn.Parameter(torch.randn(M // 2), requires_grad=False)
        self.time_proj = nn.ParameterDict({"weight": frequencies})
        self.timestep_embedder = nn.Linear(M, M, bias=False)
        self.mapping = MappingNetwork(M, _hidden(M, config.ff_ratio), config.mapping_depth)
        self.proj_in = _conv3x3(config.in_channels + config.condition_channels, widths[0], bias)
        between = range(len(widths) - 1)
        self.down_blocks = nn.ModuleList(_level(config, level) for level in between)
        self.up_blocks = nn.ModuleList(_level(config, level) for level in between)
        self.mid_block = _level(config, len(widths) - 1)
        self.downs = nn.ModuleList(Down(config, widths[i], widths[i + 1]) for i in between)
        self.ups = nn.ModuleList(Up(config, widths[i + 1], widths[i]) for i in between)
        self.out_norm = RMSNorm2d(widths[0])
        self.proj_out = _conv3x3(widths[0], config.in_channels, bias)
        if config.zero_init:
            zero_(self.proj_out)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Predict the velocity.

        Args:
            x_t: [B, C, H, W]; H and W divisible by 2 per level after the first.
            t: time, [B], in [0, 1]; 0 is the source.
            cond: [B, condition_channels, H, W], for conditional flows only.

        Returns:
            [B, C, H, W].

        Raises:
            ValueError: a shape that this network does not take.
        """
        factor = 1 << (len(self.config.widths) - 1)
        x = join_condition(self.config, factor, x_t, t, cond)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        time = fourier_features(t[:, None], self.time_proj["weight"][:, None])
        c = self.mapping(self.timestep_embedder(time))
        levels = Hourglass(self.down_blocks, self.downs, self.mid_block, self.ups, self.up_blocks)
        x = self.proj_in(x)
        geometries = level_geometries(self.config, x.shape[2], x.shape[3], x)
        x = levels.run(x, c, geometries, recompute=self.activation_checkpointing)
        velocity: Tensor = self.proj_out(self.out_norm(x))
        return velocity


def _level(config: LooUFormerConfig, level: int) -> nn.ModuleList:
    return nn.ModuleList(Block(config, level) for _ in range(config.depths[level]))


def _memory_format(x: Tensor) -> torch.memory_format:
    is_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _hidden(width: int, ratio: int) -> int:
    """Hidden width of a feed-forward layer: ``ratio`` times the width, to a multiple of 64."""
    return (width * ratio + 31) // 64 * 64


class Block(nn.Module):
    """Attention, then feed-forward; each adds to the stream."""

    def __init__(self, config: LooUFormerConfig, level: int) -> None:
        super().__init__()
        width = config.widths[level]
        self.attn = Attention(config, width)
        self.ff = ConvFeedForward(config, width)
        self.norm1 = AdaRMSNorm(width, config.mapping_width, bias=config.bias, dim=1)
        self.norm2 = AdaRMSNorm(width, config.mapping_width, bias=config.bias, dim=1)

    def forward(self, x: Tensor, c: Tensor, geometry: Geometry) -> Tensor:
        """Map x [B, d, H, W] and c [B, M] to [B, d, H, W]; see `level_geometry`."""
        x = x + self.attn(self.norm1(x, c), geometry)
        out: Tensor = x + self.ff(self.norm2(x, c))
        return out


class Attention(nn.Module):
    """Self-attention of one level."""

    scale: Tensor | None

    def __init__(self, config: LooUFormerConfig, width: int) -> None:
        super().__init__()
        heads = width // config.head_dim
        scale = nn.Parameter(torch.full((heads,), 10.0)) if config.cosine_similarity else None
        self.register_parameter("scale", scale)
        self.qkv_proj = ConvProjection(config, width, 3 * width)
        self.pos_emb = AxialRoPE(heads, config.head_dim)
        self.out_proj = nn.Conv2d(width, width, 1, bias=config.bias)
        if config.zero_init:
            zero_(self.out_proj)

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """[B, d, H, W] -> [B, d, H, W]."""
        qkv = rearrange(
            self.qkv_proj(x),
            "b (three heads e) h w -> b h w three heads e",
            three=3,
            heads=self.pos_emb.heads,
        )
        mixed = rotary_attention(qkv, self.pos_emb, self.scale, geometry)
        mixed = mixed.flatten(3).permute(0, 3, 1, 2)
        out: Tensor = self.out_proj(mixed.contiguous(memory_format=_memory_format(x)))
        return out


class ConvFeedForward(nn.Module):
    """Feed-forward layer, down(GELU(gate) a) with [gate, a] = project_in(x)."""

    def __init__(self, config: LooUFormerConfig, width: int) -> None:
        super().__init__()
        hidden = _hidden(width, config.ff_ratio)
        self.project_in = ConvProjection(config, width, 2 * hidden)
        self.down_proj = nn.Conv2d(hidden, width, 1, bias=config.bias)
        if config.zero_init:
            zero_(self.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        """[B, d, H, W] -> [B, d, H, W]."""
        gate, a = self.project_in(x).chunk(2, dim=1)
        out: Tensor = self.down_proj(F.gelu(gate) * a)
        return out


class ConvProjection(nn.Module):
    """1 x 1 convolution, and then one of 3 x 3 per channel, which has the bias of both."""

    def __init__(self, config: LooUFormerConfig, width: int, out_width: int) -> None:
        super().__init__()
        bias = config.bias
        self.conv = nn.Conv2d(width, out_width, 1, bias=bias and not config.depthwise)
        if config.depthwise:
            self.dwconv = nn.Conv2d(out_width, out_width, 3, 1, 1, groups=out_width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, d, H, W] -> [B, d', H, W]."""
        for conv in self.children():
            x = conv(x)
        return x


class RMSNorm2d(nn.Module):
    """RMS norm of each pixel, with a learned scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, d, H, W] -> [B, d, H, W]."""
        normal = rms_normalize(x, dim=1, eps=OUT_NORM_EPS)
        return normal * self.weight.to(x.dtype)[:, None, None]


def _conv3x3(channels: int, out_channels: int, bias: bool) -> nn.Sequential:
    conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=bias)
    return nn.Sequential(OrderedDict(proj=conv))


class Down(nn.Module):
    """Halve the map."""

    def __init__(self, config: LooUFormerConfig, width: int, out_width: int) -> None:
        super().__init__()
        self.kind, k = config.downsample, config.downsample_kernel
        stride = 2 if self.kind == "strided_conv" else 1
        width = width * 4 if self.kind == "unshuffle_conv" else width
        out_width = out_width // 4 if self.kind == "conv_unshuffle" else out_width
        self.conv = nn.Conv2d(width, out_width, k, stride, padding=k // 2, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, d, 2 H, 2 W] -> [B, d', H, W]."""
        if self.kind == "unshuffle_conv":
            x = pixel_unshuffle(x, 2)
        x = self.conv(x)
        return pixel_unshuffle(x, 2) if self.kind == "conv_unshuffle" else x


class Up(nn.Module):
    """Double the map, and interpolate from the skip to it by a learned factor."""

    def __init__(self, config: LooUFormerConfig, width: int, out_width: int) -> None:
        super().__init__()
        self.kind, k = config.upsample, config.upsample_kernel
        out_width = out_width * 4 if self.kind == "conv_shuffle" else out_width
        self.conv = nn.Conv2d(width, out_width, k, padding=k // 2, bias=config.bias)
        self.fac = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map x [B, d, H, W] and skip [B, d', 2 H, 2 W] to [B, d', 2 H, 2 W]."""
        if self.kind == "nearest_conv":
            x = repeat_pixels(x)
        x = self.conv(x)
        if self.kind == "conv_shuffle":
            x = F.pixel_shuffle(x, 2)
        return torch.lerp(skip.to(x.dtype), x, self.fac.to(x.dtype))
