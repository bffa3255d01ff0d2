"""Single steps of the degradation: kernel, sides, noise, JPEG and colours to the letter."""

import colorsys
import math
from dataclasses import asdict

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.degradation.parameters import ColorJitter, DegradationConfig, downscaled_size
from datasets.degradation.steps import A, gaussian_kernel, seeded, steps

GOLDEN_NOISE = [-0.5023736, 0.50684536, 2.0193486, 0.85149574]


def by_inverse(sigma: tuple[float, float], angle: float, size: int) -> npt.NDArray[np.float64]:
    """Write K(u) = exp(-1/2 u' S^-1 u) with the covariance S = R diag R' inverted."""
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(rotation @ np.diag(np.square(sigma)) @ rotation.T)
    axis = np.arange(size) - size // 2
    u = np.stack(np.meshgrid(axis, axis), axis=-1)
    kernel = np.exp(-0.5 * np.einsum("...i,ij,...j", u, inverse, u))
    return np.asarray(kernel / kernel.sum())


def test_the_steps_follow_the_references_order() -> None:
    """Flip, blur, downscale, noise, JPEG, resize back, shift, gray, colour jitter, rounding."""
    names = "flip blur downscale noise jpeg resize shift gray jitter round"

    assert list(steps(DegradationConfig())) == names.split()


@pytest.mark.parametrize(("downscale", "side"), [(0.8, 639), (1, 512), (32, 16), (31.99, 16)])
def test_sides_are_the_floats_floor_quotient(downscale: float, side: int) -> None:
    """512 // 0.8 is 639 in floats, not 640."""
    assert downscaled_size(512, 512, downscale) == (side, side)


@given(st.floats(0.1, 15), st.floats(0.1, 15), st.floats(-math.pi, math.pi))
@settings(max_examples=40)
def test_kernel_is_the_inverse_covariances(first: float, second: float, angle: float) -> None:
    """Rotated coordinates and the inverted covariance are the same kernel; its sum is 1."""
    kernel = gaussian_kernel((first, second), angle, 41)

    assert kernel.shape == (41, 41)
    assert kernel.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    assert np.allclose(kernel, by_inverse((first, second), angle, 41), atol=1e-7)
    assert np.array_equal(kernel, kernel[::-1, ::-1])


@given(st.floats(1.5, 4), st.floats(1.5, 4), st.floats(-math.pi, math.pi))
@settings(max_examples=40)
def test_kernel_is_turned_the_right_way(first: float, second: float, angle: float) -> None:
    """Its second moments are R diag(sigma^2) R', x to the right and y downwards."""
    kernel = gaussian_kernel((first, second), angle, 41).astype(np.float64)
    axis = np.arange(41) - 20
    moments = {
        "xx": (kernel * axis[None, :] ** 2).sum(),
        "yy": (kernel * axis[:, None] ** 2).sum(),
        "xy": (kernel * axis[None, :] * axis[:, None]).sum(),
    }
    cos, sin = math.cos(angle), math.sin(angle)

    assert moments["xx"] == pytest.approx((cos * first) ** 2 + (sin * second) ** 2, abs=2e-3)
    assert moments["yy"] == pytest.approx((sin * first) ** 2 + (cos * second) ** 2, abs=2e-3)
    assert moments["xy"] == pytest.approx(cos * sin * (first**2 - second**2), abs=2e-3)


def test_isotropic_kernel_is_symmetric_and_separable() -> None:
    """With one sigma it is the outer product of its marginal, in float64's rounding."""
    kernel = gaussian_kernel((7.3, 7.3), 0.0, 41)

    assert np.array_equal(kernel, kernel.T)
    assert np.allclose(kernel, np.outer(kernel.sum(0), kernel.sum(0)), atol=1e-8)


def test_noise_is_philox_and_stays_so() -> None:
    """Records of noise are seeds: should NumPy ever change the stream, this fails first."""
    field = np.random.Generator(np.random.Philox(7)).standard_normal(4, dtype=np.float32)
    gray = np.full((8, 8, 3), 0.5, np.float32)
    noisy = steps(DegradationConfig())["noise"].apply(gray, noise_sigma=10.0, noise_seed=7)

    assert np.allclose(field, GOLDEN_NOISE, atol=1e-6)
    assert np.allclose((noisy.ravel()[:4] - 0.5) * 25.5, GOLDEN_NOISE, atol=1e-4)


def test_noise_is_clipped_and_not_rounded() -> None:
    """Noise in [0, 20] levels has its standard deviation, independent by channel, in [0, 1]."""
    noise = steps(DegradationConfig())["noise"]
    mid = noise.apply(np.full((99, 99, 3), 0.5, np.float32), noise_sigma=20.0, noise_seed=1)
    dark = noise.apply(np.zeros((99, 99, 3), np.float32), noise_sigma=20.0, noise_seed=1)

    assert np.std(mid * 255) == pytest.approx(20, rel=0.02)
    assert abs(np.corrcoef(mid.reshape(-1, 3).T) - np.eye(3)).max() < 0.05
    assert dark.min() == 0
    assert not np.allclose(mid * 255, np.rint(mid * 255), atol=0.1)


@pytest.mark.parametrize(("level", "rounded"), [(100.5, 100), (101.5, 102), (99.6, 100)])
def test_jpeg_rounds_half_to_even(level: float, rounded: int) -> None:
    """Before encoding, floats become 8 bits as OpenCV rounds them."""
    flat = np.full((16, 16, 3), np.float32(level) / np.float32(255))
    decoded = steps(DegradationConfig())["jpeg"].apply(flat, quality=100, image_type=".jpg")

    assert np.array_equal(decoded, np.full_like(flat, np.float32(rounded) / np.float32(255)))


def test_jpeg_sees_true_colours() -> None:
    """Red keeps its own luminance: albumentations' own transform takes it for blue."""
    picture = np.random.default_rng(0).random((32, 32, 3), dtype=np.float32) * [1, 0.5, 0.1]
    picture = picture.astype(np.float32)
    levels = np.rint(picture * 255).astype(np.uint8)
    _, encoded = cv2.imencode(".jpg", levels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 40])
    expected = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[:, :, ::-1].astype(np.float32) / 255

    ours = steps(DegradationConfig())["jpeg"].apply(picture, quality=40, image_type=".jpg")
    theirs = A.ImageCompression().apply(picture, quality=40, image_type=".jpg")

    assert np.array_equal(ours, expected)
    assert not np.array_equal(theirs, expected)


def adjusted(
    picture: npt.NDArray[np.float64], adjustment: int, jitter: ColorJitter
) -> npt.NDArray[np.float64]:
    """Adjust brightness (0), contrast (1), saturation (2) or hue (3) of RGB in [0, 1]."""
    gray = picture @ [0.299, 0.587, 0.114]
    if adjustment == 0:
        return picture * jitter.brightness
    if adjustment == 1:
        return jitter.contrast * picture + (1 - jitter.contrast) * gray.mean()
    if adjustment == 2:
        return jitter.saturation * picture + (1 - jitter.saturation) * gray[..., None]
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in picture.reshape(-1, 3)]
    turned = [colorsys.hsv_to_rgb((h + jitter.hue) % 1, s, v) for h, s, v in hsv]
    return np.reshape(turned, picture.shape)


def test_colour_jitter_is_the_textbooks() -> None:
    """The library's ColorJitter makes the four adjustments of GFPGAN, in the order drawn."""
    picture = np.random.default_rng(1).random((9, 7, 3), dtype=np.float32)
    jitter = ColorJitter(
        brightness=0.8, contrast=1.3, saturation=1.4, hue=-0.07, order=(2, 0, 3, 1)
    )
    expected = picture.astype(np.float64)
    for adjustment in jitter.order:
        expected = adjusted(expected, adjustment, jitter).clip(0, 1)

    actual = steps(DegradationConfig())["jitter"].apply(picture, **asdict(jitter))

    assert abs(actual - expected).max() * 255 < 0.01


def test_one_seed_for_a_composition_would_correlate_its_steps() -> None:
    """Why every step has its own seed: albumentations gives all of them the same generator."""
    transforms = [A.ColorJitter(), A.HorizontalFlip(), A.ImageCompression()]
    A.Compose(transforms, seed=5)

    assert len({transform.py_random.random() for transform in transforms}) == 1
    own = seeded(steps(DegradationConfig()), seed=5, key="a", draw=0)
    assert len({step.py_random.random() for step in own.values()}) == len(own)
