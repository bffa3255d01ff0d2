"""The layers on which the autoencoders of paper Table 2 differ, one class per choice.

B batch, C channels, H and W at the layer's own resolution. A layer taken from SD-VAE has the state
keys of diffusers' AutoencoderKL, a layer of Sim-VAE those of the authors' checkpoints.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autocast import GroupNorm, layer_norm, repeat_pixels
from models.pixel_shuffle import pixel_shuffle
from models.recomputation import run_block

EPS = 1e-6


class PixelLayerNorm(nn.Module):
    """Normalise the channels of each pixel by themselves (Sec. 4.1, "Pixel-wise Layer Norm")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape; in channels-last memory no copy is made."""
        x_bhwc = x.permute(0, 2, 3, 1)
        return layer_norm(x_bhwc, self.weight, self.bias, EPS).permute(0, 3, 1, 2)


def norm(norm_type: str, channels: int, groups: int) -> nn.Module:
    """Build the normalisation ``norm_type``, ``layer_norm`` or ``group_norm``."""
    if norm_type == "layer_norm":
        return PixelLayerNorm(channels)
    return GroupNorm(groups, channels, eps=EPS)


def conv3x3(channels: int, channels_out: int) -> nn.Conv2d:
    """Build a 3 x 3 convolution that keeps the resolution."""
    return nn.Conv2d(channels, channels_out, 3, padding=1)


class SimResBlock(nn.Module):
    """One norm, one activation: x + conv2(SiLU(conv1(norm(x)))) (paper Fig. 3)."""

    def __init__(self, channels: int, channels_out: int, norm_type: str, groups: int) -> None:
        super().__init__()
        self.norm = norm(norm_type, channels, groups)
        self.conv1 = conv3x3(channels, channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        # Only SD's resizing order changes the width here; Sim-VAE has no shortcut convolutions.
        self.conv_shortcut = (
            nn.Conv2d(channels, channels_out, 1) if channels != channels_out else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C_out, H, W]."""
        h: Tensor = self.conv2(F.silu(self.conv1(self.norm(x))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class SDResBlock(nn.Module):
    """Two norms, two activations: x + conv2(SiLU(norm2(conv1(SiLU(norm1(x))))))."""

    def __init__(self, channels: int, channels_out: int, norm_type: str, groups: int) -> None:
        super().__init__()
        self.norm1 = norm(norm_type, channels, groups)
        self.conv1 = conv3x3(channels, channels_out)
        self.norm2 = norm(norm_type, channels_out, groups)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.conv_shortcut = (
            nn.Conv2d(channels, channels_out, 1) if channels != channels_out else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C_out, H, W]."""
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class SelfAttention(nn.Module):
    """Attention of every pixel to every pixel, one head of full width, in a residual branch.

    The norm is called ``group_norm`` whatever its type: that is diffusers' key.
    """

    def __init__(self, channels: int, norm_type: str, groups: int) -> None:
        super().__init__()
        self.group_norm = norm(norm_type, channels, groups)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2).unsqueeze(1)  # [B, 1, HW, C]
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        mixed = self.to_out[0](F.scaled_dot_product_attention(q, k, v))
        h: Tensor = mixed.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + h


class Downsample(nn.Module):
    """Halve the resolution by a strided 3 x 3 convolution.

    Args:
        symmetric: pad one pixel on every side (Sim-VAE); otherwise on the right and the bottom
            only (SD-VAE).
    """

    def __init__(self, channels: int, channels_out: int, *, symmetric: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels_out, 3, stride=2, padding=int(symmetric))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C_out, H / 2, W / 2]."""
        h: Tensor = self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))
        return h


class Upsample(nn.Module):
    """Double the resolution: repeat pixels, then a 3 x 3 convolution."""

    def __init__(self, channels: int, channels_out: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C_out, 2 H, 2 W]."""
        h: Tensor = self.conv(repeat_pixels(x))
        return h


class PixelShuffleUpsample(nn.Module):
    """Double the resolution: a 3 x 3 convolution to four times the channels, spread over space."""

    def __init__(self, channels: int, channels_out: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, 4 * channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C_out, 2 H, 2 W]."""
        return pixel_shuffle(self.conv(x), 2)


class Alternating(nn.Sequential):
    """Sequences that take turns: ResBlock, attention, ResBlock."""

    def __iter__(self) -> Iterator[nn.Module]:
        """Yield the first layer of each sequence, then the second of each, and so on."""
        sequences = [child for child in self.children() if isinstance(child, nn.Sequential)]
        for turn in zip_longest(*sequences):
            yield from (layer for layer in turn if layer is not None)


class Chain(nn.Sequential):
    """Named layers, run one after another; nested sequences stand for their layers."""

    recompute = False
    """Compute again in the backward pass what it needs inside a layer, instead of keeping it."""

    # Autograd keeps no more than the input of these, so recomputing them would gain nothing.
    _lean = (nn.Conv2d, Downsample)

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__(OrderedDict(layers))

    def layers(self) -> Iterator[nn.Module]:
        """Yield the layers in the order in which they run."""
        return _flat(self)

    def forward(self, x: Tensor) -> Tensor:
        """Run every layer."""
        for layer in self.layers():
            x = run_block(layer, x, recompute=self.recompute and not isinstance(layer, self._lean))
        return x


def _flat(layers: nn.Sequential) -> Iterator[nn.Module]:
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            yield from _flat(layer)
        else:
            yield layer
