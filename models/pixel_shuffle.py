"""Pixel shuffle that takes an empty batch, which PyTorch's CPU kernels return in its old shape.

The same holds of their gradients. For a batch that is not empty these are PyTorch's own functions,
its memory formats included.
"""

from torch import Tensor, nn
from torch.nn import functional as F


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """Spread channels over space, [B, C f f, H, W] -> [B, C, H f, W f]."""
    if x.numel():
        return F.pixel_shuffle(x, factor)
    B, C, H, W = x.shape
    return x.reshape(B, C // factor**2, H * factor, W * factor)


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """Gather space into channels, [B, C, H f, W f] -> [B, C f f, H, W]."""
    if x.numel():
        return F.pixel_unshuffle(x, factor)
    B, C, H, W = x.shape
    return x.reshape(B, C * factor**2, H // factor, W // factor)


class PixelUnshuffle(nn.PixelUnshuffle):
    """`pixel_unshuffle` as a module without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H f, W f] -> [B, C f f, H, W]."""
        return pixel_unshuffle(x, self.downscale_factor)
