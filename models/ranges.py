"""The ranges of images, and the only functions on tensors that turn one into another.

    levels   uint8, 0 to 255             files, pictures that are looked at or judged
    unit     float, [0, 1]               the predictor's, and a pixel flow's
    model    float, [-1, 1]              the autoencoders', LPIPS's, and every loader's

Shapes are kept, and so are floating-point types. In float32 every level survives any way through
the three; a unit value that became a model value comes back to the same model value ever after.
A network's own normalisation, such as ImageNet's or CLIP's, stays with the network.
"""

import torch
from torch import Tensor


def unit_to_model(images: Tensor) -> Tensor:
    """[0, 1] => [-1, 1]."""
    return images * 2 - 1


def model_to_unit(images: Tensor) -> Tensor:
    """[-1, 1] => [0, 1]."""
    return (images + 1) / 2


def to_uint8(images: Tensor) -> Tensor:
    """Float [-1, 1] => uint8, rounded half to even; what lies beyond is clamped.

    Each value is rounded by itself, so neither batch nor kernel enters here, and whole levels come
    back exactly. Where a network's output lies on the edge between two levels, the last bits of
    that output, which its kernels decide, say which of the two it becomes.
    """
    return ((images.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def unit_to_uint8(images: Tensor) -> Tensor:
    """Float [0, 1] => uint8, rounded; what lies beyond is clamped."""
    return to_uint8(unit_to_model(images))


def uint8_to_model(levels: Tensor) -> Tensor:
    """uint8 => float32 [-1, 1]."""
    return levels.float() / 127.5 - 1


def uint8_to_unit(levels: Tensor) -> Tensor:
    """uint8 => float32 [0, 1], each the float32 nearest to k / 255 on every device."""
    # a number in the divisor's place would become a product with its reciprocal on a GPU
    return levels.float() / torch.full((), 255.0, device=levels.device)
