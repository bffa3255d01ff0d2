"""Grids of pictures can be looked at, whatever the size of the pictures."""

import numpy as np
import pytest
import torch

from trainers.recipes.pictures import SIDE, grid


@pytest.mark.parametrize("side", [16, 64, 256, 512])
@pytest.mark.parametrize(("count", "kinds"), [(1, 2), (6, 2), (6, 5), (3, 3)])
def test_a_grid_is_big_and_not_a_strip(side: int, count: int, kinds: int) -> None:
    """It fills most of MLflow's page; 64 pixels are as visible as 512."""
    images = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    picture = grid({str(n): images for n in range(kinds)}, "0", ["key"] * count)

    assert max(picture.size) > 0.6 * SIDE
    assert max(picture.size) / min(picture.size) < 3


def test_enlarged_pixels_are_those_of_the_image() -> None:
    """Enlarging by a whole number blurs nothing: every pixel is there as a square."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (1, 3, 16, 16), dtype=np.uint8))
    picture = grid({"HQ": image, "restored": image.roll(1, 3)}, "HQ", ["a-very-long-key" * 99])
    pixels = np.asarray(picture)
    scale = SIDE // 32
    corner = next(
        (top, left)
        for top in range(scale, 4 * scale)
        for left in range(4 * scale)
        if np.array_equal(
            pixels[top : top + 16 * scale : scale, left : left + 16 * scale : scale],
            image[0].permute(1, 2, 0).numpy(),
        )
    )
    shown = pixels[corner[0] :, corner[1] :][: 16 * scale, : 16 * scale]

    assert np.array_equal(
        shown, image[0].permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)
    )
