"""The resizes that a metric's network is fed by; a value is compared under its own one only."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.ranges import uint8_to_unit


def clean(images: Tensor, side: int) -> Tensor:
    """Resize as clean-fid does (Parmar et al. 2022): each channel in floats, by Pillow's bicubic.

    It is antialiased where it shrinks, and nothing is rounded. It runs on the host.

    Args:
        images: uint8 [B, 3, H, W].
        side: pixels of the square that they become.

    Returns:
        float32 [B, 3, side, side] in [0, 255], where the images are.
    """
    channels = images.flatten(0, 1).cpu().numpy().astype(np.float32)
    resized = [
        np.asarray(Image.fromarray(channel).resize((side, side), Image.Resampling.BICUBIC))
        for channel in channels
    ]
    out = torch.from_numpy(np.stack(resized)).clamp(0, 255)
    return out.reshape(*images.shape[:2], side, side).to(images.device)


def bilinear(images: Tensor, side: int) -> Tensor:
    """Resize as pytorch-fid does: bilinear, not antialiased.

    Args:
        images: uint8 [B, 3, H, W].
        side: pixels of the square that they become.

    Returns:
        float32 [B, 3, side, side] in [0, 1].
    """
    return F.interpolate(uint8_to_unit(images), (side, side), mode="bilinear")
