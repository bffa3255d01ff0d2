"""What Q-Align sees of an image: padded to a square, resized by PIL, normalised as CLIP's input.

Pillow does the resizing, never torchvision: the two differ by up to 2/255, and so do the scores.
Padding and resizing run on the host, on uint8; normalising runs where the model is, after a
transfer of a quarter of the bytes. Together they equal the original's preprocessing exactly.
Pillow adds 8-bit pixels up in integers (its weights are rounded to whole numbers once for an image
size), so that the order of a sum decides no level.
"""

import json
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.uint8]  # RGB [H, W, 3]

MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)
PADDING: Final = (122, 116, 104)  # int(255 * MEAN)


def to_rgb(image: Pixels | Image.Image) -> Image.Image:
    """Turn an RGB uint8 array or a PIL image into a PIL RGB image.

    Palette and CMYK images are converted before they are padded; the original pads them first, in a
    colour of another meaning, and scores them differently. Alpha is dropped, as in the original. Of
    16-bit grey the high byte is taken, where Pillow's own conversion would clip to white.

    Raises:
        ValueError: an array that is not uint8 [H, W, 3], an empty image, or one of mode I or F.
    """
    if isinstance(image, Image.Image):
        if image.mode in {"I", "F"}:
            raise ValueError(f"image of mode {image.mode}: range unknown; scale it to 8 bits first")
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = image.convert("RGB")
    elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image {image.dtype} {list(image.shape)}: expected uint8 [H, W, 3], RGB")
    else:
        image = Image.fromarray(image)
    if 0 in image.size:
        raise ValueError(f"image of {image.width} x {image.height} pixels: nothing to score")
    return image


def pad_to_square(image: Image.Image) -> Image.Image:
    """Centre an RGB image on a square of the padding colour; an odd pixel goes right or below."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), PADDING)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def prepare(image: Pixels | Image.Image, size: int) -> Pixels:
    """Pad and resize an image (see ``to_rgb``); returns uint8 [size, size, 3]."""
    square = pad_to_square(to_rgb(image))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


def to_clip_range(pixels: Tensor) -> Tensor:
    """Normalise uint8 [B, H, W, 3] to CLIP's input, float32 [B, 3, H, W], on the same device."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def check_preprocessing(path: Path, size: int) -> None:
    """Compare a preprocessor_config.json with what this module does.

    Raises:
        ValueError: another size, filter, mean or deviation; the scores would be of other images.
    """
    found = json.loads(path.read_text())
    expected = {
        "size": size,
        "crop_size": size,
        "resample": int(Image.Resampling.BICUBIC),
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
    for name, value in expected.items():
        got = found.get(name, value)
        if isinstance(got, dict):  # {"shortest_edge": s} or {"height": s, "width": s}
            got = max(got.values())
        if got != value:
            raise ValueError(f"{path}: {name}={got}, expected {value} for this checkpoint")
