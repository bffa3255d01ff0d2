"""The colour metric: CIELAB and the blur by other libraries, and what it sees and does not see."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage import data
from skimage.color import rgb2lab
from torch import Tensor

from models.metrics.colour import blur, colour_difference, srgb_to_lab
from models.metrics.fidelity import ms_ssim


def face(side: int = 176) -> Tensor:
    """Crop the astronaut's face: uint8 [1, 3, side, side]."""
    pixels = data.astronaut()[20 : 20 + side, 140 : 140 + side]
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())


def shifted(image: Tensor, levels: tuple[int, int, int]) -> Tensor:
    """Add so many levels to the channels, clamped."""
    change = torch.tensor(levels)[:, None, None]
    return (image.int() + change).clamp(0, 255).byte()


def test_cielab_is_scikit_image_s() -> None:
    """Over the whole cube of colours, dark ones on the straight parts of both curves included."""
    levels = np.linspace(0, 1, 18)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 18, 3) ** 2
    found = srgb_to_lab(torch.from_numpy(colours.transpose(2, 0, 1))[None])[0]

    np.testing.assert_allclose(found.permute(1, 2, 0), rgb2lab(colours), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (33, 17), (5, 1)])
def test_the_blur_is_scipy_s(height: int, width: int) -> None:
    """A Gaussian of a 64th of the shorter side, mirrored at the border, ended at four sigma."""
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)).double()
    sigma = min(height, width) / 64
    expected = gaussian_filter(image.numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=4)

    np.testing.assert_allclose(blur(image), expected, atol=1e-12)


def test_a_face_of_512_pixels_is_blurred_by_8() -> None:
    """A bright pixel becomes a spot of that standard deviation."""
    image = torch.zeros(1, 1, 512, 512, dtype=torch.float64)
    image[..., 256, 256] = 1
    profile = blur(image)[0, 0].sum(0)
    at = torch.arange(512) - 256

    assert (profile * at**2).sum().sqrt().item() == pytest.approx(8, rel=1e-3)


def test_the_difference_is_that_of_the_blurred_colours_elsewhere_computed() -> None:
    """SciPy's blur of encoded values, scikit-image's CIELAB, the Euclidean distance, the mean."""
    hq = face(128)
    tinted = shifted(hq, (12, -3, -9))
    sides = [
        rgb2lab(gaussian_filter(x[0].permute(1, 2, 0).numpy() / 255, (2, 2, 0), mode="mirror"))
        for x in (tinted, hq)
    ]
    expected = np.linalg.norm(sides[0] - sides[1], axis=-1).mean()

    assert colour_difference(tinted, hq).item() == pytest.approx(expected, abs=1e-6)


def test_black_and_white_are_a_hundred_apart() -> None:
    """So that a value can be read as a share of the whole lightness."""
    black = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)

    assert colour_difference(black, 255 - black).item() == pytest.approx(100, abs=0.01)


def test_it_sees_a_shift_of_chroma_that_the_luma_is_blind_to() -> None:
    """4 R - 3 G + 5 B leaves Y where it was: MS-SSIM stays at 1 while the face turns magenta."""
    hq = (48 + face().float() * 160 / 255).byte()  # nothing is clamped below
    tinted = [shifted(hq, (4 * k, -3 * k, 5 * k)) for k in (0, 2, 4, 8)]
    differences = [colour_difference(one, hq).item() for one in tinted]

    assert differences == sorted(differences)
    assert differences[0] == 0
    assert differences[1] > 2.3
    assert all(ms_ssim(one, hq).item() > 0.9999 for one in tinted)


def test_it_forgives_texture() -> None:
    """Noise and blur, which other metrics count, move it by far less than a tint of few levels."""
    hq = (48 + face().float() * 160 / 255).byte()  # nothing is clamped, which would shift the mean
    generator = torch.Generator().manual_seed(0)
    noise = (hq + 15 * torch.randn(hq.shape, generator=generator)).round().byte()
    mean = blur(hq.double()).round().byte()
    tint = colour_difference(shifted(hq, (8, 0, -8)), hq).item()

    assert colour_difference(noise, hq).item() < tint / 4
    assert colour_difference(mean, hq).item() < tint / 2
