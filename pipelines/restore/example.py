"""A face to try a model with: that of scikit-image's astronaut.

It is a photograph by NASA, in the public domain, and in no training data of the project's bundles.
"""

import numpy as np

from datasets.decoding import Pixels, encode_png
from datasets.degradation.parameters import degradation_preset
from datasets.degradation.reference import degrade, draw_parameters, to_levels
from infra.paths import path_of, write_bytes
from models.faces.alignment import crop, square_alignment

KEY = "astronaut"
CENTRE, RIGHT = (224.7, 106.55), (86.72, 4.31)  # FFHQ's alignment of her face, by 68 landmarks
SIZE, DEGRADATION, SEED = 128, "pmrf-128", 0


def photograph() -> Pixels:
    """Return the whole photograph, RGB uint8 [512, 512, 3]."""
    from skimage import data

    pixels: Pixels = data.astronaut()
    return pixels


def face(size: int) -> Pixels:
    """Return her face as FFHQ's are aligned, RGB uint8 [size, size, 3]."""
    return crop(photograph(), square_alignment(np.array(CENTRE), np.array(RIGHT), size))


def write_pair(folder: str) -> None:
    """Write folder/lq/astronaut.png and folder/hq/astronaut.png, always with the same bytes."""
    drawn = draw_parameters(degradation_preset(DEGRADATION), seed=SEED, key=KEY)
    pair = degrade(face(SIZE), drawn)
    for name, picture in (("lq", pair.lq), ("hq", pair.hq)):
        write_bytes(path_of(folder) / name / f"{KEY}.png", encode_png(to_levels(picture)))
