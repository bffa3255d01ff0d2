"""PSNR, SSIM, MS-SSIM, IndRMSE: definitions worked out in NumPy, and torchmetrics beside them."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure as multiscale,
)
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from models.metrics.catalog import METRICS
from models.metrics.fidelity import (
    MIN_SIDE,
    SCALE_WEIGHTS,
    indrmse,
    indrmse_pmrf,
    luma,
    ms_ssim,
    psnr,
    ssim,
)

AT_255 = {"data_range": 255.0, "reduction": "none"}


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


def reference_parts(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute luminance and contrast of [H, W] with dense two-dimensional windows."""
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(image: np.ndarray) -> np.ndarray:
        return correlate(image, window, mode="constant")[5:-5, 5:-5]

    mx, my = blur(x), blur(y)
    vx, vy, c = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    contrast = (2 * c + 58.5225) / (vx + vy + 58.5225)
    return (2 * mx * my + 6.5025) / (mx**2 + my**2 + 6.5025), contrast


def reference_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Compute SSIM of RGB [3, H, W], channel by channel; negative places count as they are."""
    parts = [reference_parts(a.astype(float), b.astype(float)) for a, b in zip(x, y, strict=True)]
    return float(np.mean([luminance * contrast for luminance, contrast in parts]))


def test_ssim_is_its_definition() -> None:
    """Of images that are alike, and of one with its negative, where the contrast is below zero."""
    x, y = images(0, 40, 33), images(1, 40, 33)
    y[0] = 255 - x[0]
    expected = [reference_ssim(a.numpy(), b.numpy()) for a, b in zip(x, y, strict=True)]

    assert expected[0] < 0
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-9)
    assert ssim(x, x).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_indrmse_takes_the_root_before_or_after_the_mean() -> None:
    """The authors' is on [0, 1], an image at a time; PMRF's is of a whole set, in levels."""
    posterior_mean = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    restored = posterior_mean.clone()
    restored[0] += 3
    restored[1, 0] += 51
    metric = METRICS["indrmse_pmrf"]

    assert indrmse(restored, posterior_mean).tolist() == pytest.approx([3 / 255, 0.2 / 3**0.5])
    assert indrmse_pmrf(restored, posterior_mean).tolist() == pytest.approx([9.0, 51**2 / 3])
    assert (metric.pooled, metric.against) == ("root_mean", "posterior_mean")
    assert METRICS["indrmse"].pooled == "mean"


def reference_ms_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Compute MS-SSIM of RGB [3, H, W]; places of negative contrast count as 0."""
    x, y = (np.rint(np.tensordot([299, 587, 114], z.astype(int), 1) / 1000) for z in (x, y))
    result = 1.0
    for number, weight in enumerate(SCALE_WEIGHTS):
        luminance, contrast = reference_parts(x, y)
        contrast = np.maximum(contrast, 0)
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


def alike() -> tuple[Tensor, Tensor]:
    """Draw images whose contrasts agree everywhere, of sides that halve evenly four times."""
    x = images(0, 192, 176)
    y = x.float() * 0.9 + 10 + 2 * torch.sin(torch.arange(176) / 5)
    return x, y.round().byte()


def inner_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Average torchmetrics' map of SSIM where its window is within the image."""
    _, whole = structural_similarity_index_measure(x, y, return_full_image=True, **AT_255)
    return whole[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))


def test_torchmetrics_agrees_on_psnr_and_ssim() -> None:
    """PSNR but for the 1e-8 that keeps equal images finite; SSIM where no border is mirrored."""
    x, y = alike()
    a, b = x.double(), y.double()
    expected = peak_signal_noise_ratio(a, b, dim=(1, 2, 3), **AT_255)

    assert psnr(x, y).tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    assert ssim(x, y).tolist() == pytest.approx(inner_ssim(a, b).tolist(), abs=1e-9)


def test_torchmetrics_agrees_on_the_parts_of_ms_ssim() -> None:
    """Its contrasts of the luma at four scales, and its SSIM at the fifth, make up our number."""
    x, y = alike()
    a, b = luma(x), luma(y)
    expected = torch.ones(2, dtype=torch.float64)
    for weight in SCALE_WEIGHTS[:-1]:
        _, contrast = structural_similarity_index_measure(
            a, b, return_contrast_sensitivity=True, **AT_255
        )
        expected *= contrast**weight
        a, b = torch.nn.functional.avg_pool2d(a, 2), torch.nn.functional.avg_pool2d(b, 2)
    expected *= inner_ssim(a, b) ** SCALE_WEIGHTS[-1]

    assert ms_ssim(x, y).tolist() == pytest.approx(expected.tolist(), abs=1e-9)


def test_torchmetrics_numbers_are_others() -> None:
    """Its SSIM, and MS-SSIM at the last scale, count places where the window has mirrored pixels.

    And its MS-SSIM is of RGB: of noise in chroma it has much to say, and the tables' luma nothing.
    """
    x, y = alike()
    its_ssim = structural_similarity_index_measure(x.double(), y.double(), **AT_255)
    its_ms_ssim = multiscale(luma(x), luma(y), normalize="relu", **AT_255)
    assert ((ssim(x, y) - its_ssim).abs() > 1e-5).all()
    assert ((ms_ssim(x, y) - its_ms_ssim).abs() > 1e-6).all()

    rng = np.random.default_rng(2)
    # 4 x 0.299 - 3 x 0.587 + 5 x 0.114 = 0.005: the luma moves by less than a level
    noise = np.array([4, -3, 5])[:, None, None] * rng.integers(-4, 5, (2, 1, 192, 176))
    x = x.clamp(32, 223)
    y = (x.int() + torch.from_numpy(noise)).byte()
    assert (ms_ssim(x, y) > 0.999).all()
    assert (multiscale(x.double(), y.double(), normalize="relu", **AT_255) < 0.99).all()


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
