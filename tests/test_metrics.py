"""PSNR and MS-SSIM against their definitions, worked out independently in NumPy and SciPy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import Tensor

from models.metrics.fidelity import MIN_SIDE, SCALE_WEIGHTS, luma, ms_ssim, psnr


def images(seed: int, height: int = 176, width: int = 163, batch: int = 2) -> Tensor:
    """Draw smooth images with noise."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (batch, 3, 7, 7)))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    noisy = smooth + torch.from_numpy(rng.normal(0, 6, smooth.shape))
    return noisy.clamp(0, 255).round().to(torch.uint8)


def test_psnr_is_ten_log_of_the_mean_squared_error() -> None:
    """Every image has its own, and equal ones have that of 1e-8."""
    x = images(0)
    y = x.clone()
    y[1] ^= 4
    error = ((x[1].double() - y[1].double()) / 255).square().mean().item()

    assert psnr(x, y).tolist() == pytest.approx([80.0, -10 * np.log10(error + 1e-8)], abs=1e-9)


def reference_ms_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Compute MS-SSIM of RGB [3, H, W] with dense two-dimensional windows."""
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(image: np.ndarray) -> np.ndarray:
        return correlate(image, window, mode="constant")[5:-5, 5:-5]

    x, y = (np.rint(np.tensordot([299, 587, 114], z.astype(int), 1) / 1000) for z in (x, y))
    result = 1.0
    for number, weight in enumerate(SCALE_WEIGHTS):
        mx, my = blur(x), blur(y)
        vx, vy, c = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        contrast = np.maximum((2 * c + 58.5225) / (vx + vy + 58.5225), 0)
        luminance = (2 * mx * my + 6.5025) / (mx**2 + my**2 + 6.5025)
        last = number == len(SCALE_WEIGHTS) - 1
        result *= (contrast * luminance if last else contrast).mean() ** weight
        x, y = (np.pad(z, [(side % 2,) * 2 for side in z.shape]) for z in (x, y))
        h, w = (side // 2 * 2 for side in x.shape)
        x, y = (z[:h, :w].reshape(h // 2, 2, w // 2, 2).mean((1, 3)) for z in (x, y))
    return float(result)


def test_ms_ssim_is_its_definition() -> None:
    """Sides that do not halve evenly included."""
    x, y = images(0), images(1)
    y[0] = (x[0].float() * 0.9 + 10).round().to(torch.uint8)
    expected = [reference_ms_ssim(a.numpy(), b.numpy()) for a, b in zip(x, y, strict=True)]

    assert ms_ssim(x, y).tolist() == pytest.approx(expected, abs=1e-9)
    assert ms_ssim(x, x).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def halfway_images() -> Tensor:
    """Draw two images [2, 3, 176, 163] whose every pixel's Y lies halfway between two levels."""
    rgb = np.stack(np.meshgrid(*[np.arange(256)] * 3, indexing="ij"), -1)[::3].reshape(-1, 3)
    halfway = rgb[rgb @ [299, 587, 114] % 1000 == 500]
    drawn = np.random.default_rng(0).choice(halfway, (2, 176, 163))
    return torch.from_numpy(drawn.astype(np.uint8)).permute(0, 3, 1, 2)


def test_an_image_s_ms_ssim_does_not_depend_on_its_batch() -> None:
    """Exact halves of a level round to even, in whatever order a kernel adds the channels up."""
    x = halfway_images()
    y = x.flip(0)
    thousandths = torch.einsum("bchw,c->bhw", x.long(), torch.tensor([299, 587, 114]))
    below = thousandths // 1000
    alone = [ms_ssim(a[None], b[None]).item() for a, b in zip(x, y, strict=True)]

    assert torch.equal(luma(x)[:, 0], (below + below % 2).double())
    assert ms_ssim(x, y).tolist() == pytest.approx(alone, abs=1e-9)
    assert ms_ssim(x[..., :170, :], y[..., :170, :]).tolist() == pytest.approx(
        ms_ssim(x[..., :170, :].contiguous(), y[..., :170, :].contiguous()).tolist(), abs=1e-9
    )


def test_what_cannot_be_compared_is_refused() -> None:
    """Floats, other shapes, and images too small for five scales."""
    x = images(0)
    with pytest.raises(TypeError, match="uint8"):
        psnr(x.float(), x)
    with pytest.raises(ValueError, match="one shape"):
        psnr(x, x[:1])
    with pytest.raises(ValueError, match=str(MIN_SIDE)):
        ms_ssim(x[..., :160], x[..., :160])
    small = x[..., :MIN_SIDE, :MIN_SIDE]
    assert ms_ssim(small, small).shape == (2,)
