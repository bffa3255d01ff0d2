"""The steps of the degradation as albumentations transforms, in the order of the references.

The order is that of GFPGAN, DifFace and PMRF: flip; blur; downscale; noise; JPEG; resize back;
channel shift; gray; colour jitter; 8 bits. Images are float32 RGB [H, W, 3] in [0, 1] throughout.
Flip, gray and colour jitter are albumentations' own; where its transform is another operation, the
class below says in which way.
"""

import math
import os
import random
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from datasets.degradation.parameters import NOISE_SEEDS, DegradationConfig, downscaled_size
from infra.config import digest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or its import asks a server
import albumentations as A

Image = npt.NDArray[np.float32]
"""RGB [H, W, 3] in [0, 1]."""


def steps(config: DegradationConfig) -> dict[str, Any]:
    """Make the transforms in the order of the paper's references, by name.

    They work in any composition of albumentations that is called with ``image`` and ``hq``, the
    same image twice: ``image`` becomes LQ.
    """
    ordered = {
        "flip": A.HorizontalFlip(p=config.flip_probability),
        "blur": GaussianBlur(config),
        "downscale": Downscale(config),
        "noise": GaussianNoise(config),
        "jpeg": Jpeg(config),
        "resize": ResizeBack(config),
        "shift": ChannelShift(config, p=config.shift_probability),
        "gray": A.ToGray(p=config.gray_probability),
        "jitter": A.ColorJitter(
            brightness=config.brightness,
            contrast=config.contrast,
            saturation=config.saturation,
            hue=config.hue,
            p=config.jitter_probability,
        ),
        "round": RoundTo8Bit(config),
    }
    ordered["flip"].add_targets({"hq": "image"})
    if config.gray_target:
        ordered["gray"].add_targets({"hq": "image"})
    return ordered


def seeded(ordered: dict[str, Any], *, seed: int, key: str, draw: int) -> dict[str, Any]:
    """Give every step its own seed, from SHA-256 of (seed, key, draw, name); return the steps.

    ``A.Compose(seed=...)`` would give all steps the same seed, so that blur, downscale, noise and
    quality would be large or small together. With a seed for each step, switching one off does not
    change the numbers of the others.
    """
    for name, step in ordered.items():
        step.set_random_seed(int(digest([seed, key, draw, name]), 16))
    return ordered


def replay(recorded: Mapping[str, dict[str, Any]], *, gray_target: bool) -> Any:
    """Compose the steps that are in ``recorded``, in albumentations' replay mode.

    Args:
        recorded: by name of the step, the arguments that its ``apply`` takes beside the image.
        gray_target: whether gray, if recorded, is applied to HQ too.
    """
    ordered = steps(DegradationConfig(gray_target=gray_target))
    applied = [name for name in ordered if name in recorded]
    composition = A.Compose([ordered[name] for name in applied])
    for name in applied:
        ordered[name].replay_mode = ordered[name].applied_in_replay = True
        ordered[name].params = recorded[name]
    return composition


def pick(rng: random.Random, config: DegradationConfig, values: tuple[float, ...]) -> float:
    """Draw one of ``values``, or between the two, by ``random()`` alone.

    Python promises that the sequence of ``random()`` stays; it does not for its other methods.
    """
    if config.among:
        return values[int(rng.random() * len(values))]
    return values[0] + (values[1] - values[0]) * rng.random()


def gaussian_kernel(sigma: tuple[float, float], angle: float, size: int) -> npt.NDArray[np.float32]:
    """Sample a rotated Gaussian on the integer grid: [size, size], sum 1.

    K(u) = exp(-1/2 u' S^-1 u), S = R(angle) diag(sigma^2) R(angle)', u = (x, y), y downwards;
    written in the rotated coordinates R' u, so that no matrix is inverted.
    """
    axis = np.arange(size, dtype=np.float64) - size // 2
    x, y = axis[None, :], axis[:, None]
    along = (math.cos(angle) * x + math.sin(angle) * y) / sigma[0]
    across = (math.cos(angle) * y - math.sin(angle) * x) / sigma[1]
    kernel = np.exp(-0.5 * (along**2 + across**2))
    normalised: npt.NDArray[np.float32] = (kernel / kernel.sum()).astype(np.float32)
    return normalised  # OpenCV computes in float32 too


class Step(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is untyped to mypy
    """A transform that draws from the ranges of a `DegradationConfig` and changes LQ only."""

    def __init__(self, config: DegradationConfig, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.config = config


class GaussianBlur(Step):
    """Blur with one Gaussian kernel, isotropic or rotated; borders mirrored without the edge pixel.

    albumentations' AdvancedBlur cannot be held to a Gaussian: its exponent is always drawn.
    """

    def get_params(self) -> dict[str, Any]:
        """Draw both sigmas and the angle."""
        config, rng = self.config, self.py_random
        isotropic = rng.random() < config.isotropic_probability
        first, second = (pick(rng, config, config.blur_sigma) for _ in range(2))
        angle = pick(rng, config, config.blur_angle)
        return {
            "blur_sigma": (first, first if isotropic else second),
            "blur_angle": 0.0 if isotropic else angle,
            "kernel_size": config.kernel_size,
        }

    def apply(
        self,
        img: Image,
        blur_sigma: tuple[float, float],
        blur_angle: float,
        kernel_size: int,
        **_: Any,
    ) -> Image:
        """Correlate with the kernel."""
        kernel = gaussian_kernel(blur_sigma, blur_angle, kernel_size)
        return np.asarray(cv2.filter2D(img, -1, kernel, borderType=cv2.BORDER_REFLECT_101))


class Downscale(Step):
    """Shrink by s, bilinear between the four nearest pixels; it aliases, as in the references.

    albumentations' Downscale shrinks and enlarges in one step; noise and JPEG go in between.
    """

    def get_params(self) -> dict[str, Any]:
        """Draw s."""
        return {"downscale": pick(self.py_random, self.config, self.config.downscale)}

    def apply(self, img: Image, downscale: float, **_: Any) -> Image:
        """Resize to int(n // s) pixels a side."""
        height, width = downscaled_size(img.shape[0], img.shape[1], downscale)
        return np.asarray(cv2.resize(img, (width, height), interpolation=cv2.INTER_LINEAR))


class GaussianNoise(Step):
    """Add Gaussian noise, independent in every pixel and channel, and clip; nothing is rounded.

    albumentations' GaussNoise records the whole field, and draws it from OpenCV's global generator
    with one of 65,536 seeds. Here the field is that of NumPy's Philox with the recorded seed.
    """

    def get_params(self) -> dict[str, Any]:
        """Draw the standard deviation and the seed of the field."""
        return {
            "noise_sigma": pick(self.py_random, self.config, self.config.noise_sigma),
            "noise_seed": int(self.py_random.random() * NOISE_SEEDS),
        }

    def apply(self, img: Image, noise_sigma: float, noise_seed: int, **_: Any) -> Image:
        """Add the field."""
        rng = np.random.Generator(np.random.Philox(noise_seed))
        noise = rng.standard_normal(img.shape, dtype=np.float32) * np.float32(noise_sigma / 255)
        return (img + noise).clip(0, 1)


class Jpeg(A.ImageCompression):  # type: ignore[misc]  # as above
    """Encode and decode as 8-bit JPEG, rounding half to even.

    albumentations hands its RGB to OpenCV, which reads it as BGR: luminance would weigh red by
    0.114 and blue by 0.299. Here the encoder sees the true colours.
    """

    def __init__(self, config: DegradationConfig) -> None:
        super().__init__(p=1.0)
        self.config = config

    def get_params(self) -> dict[str, Any]:
        """Draw the quality and truncate it to an integer, as PMRF does."""
        quality = pick(self.py_random, self.config, self.config.jpeg_quality)
        return {"quality": int(quality), "image_type": ".jpg"}

    def apply(self, img: Image, quality: int, image_type: str, **_: Any) -> Image:
        """Encode and decode."""
        bgr = cv2.cvtColor(img, cv2.COLOR_RGB2BGR)
        return np.asarray(cv2.cvtColor(super().apply(bgr, quality, image_type), cv2.COLOR_BGR2RGB))


class ResizeBack(Step):
    """Enlarge LQ to the size of HQ, bilinear."""

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Take the size from HQ."""
        del params
        return {"size": data["hq"].shape[:2]}

    def apply(self, img: Image, size: tuple[int, int], **_: Any) -> Image:
        """Resize to (height, width)."""
        return np.asarray(cv2.resize(img, size[::-1], interpolation=cv2.INTER_LINEAR))


class ChannelShift(Step):
    """Add one constant to each channel and clip: GFPGAN's first colour jitter."""

    def get_params(self) -> dict[str, Any]:
        """Draw three constants in levels of 255."""
        limit, rng = self.config.shift_limit, self.py_random
        return {"shift": tuple(limit * (2 * rng.random() - 1) for _ in range(3))}

    def apply(self, img: Image, shift: tuple[float, float, float], **_: Any) -> Image:
        """Add the constants."""
        shifted: Image = img + np.asarray(shift, np.float32) / np.float32(255)
        return shifted.clip(0, 1)


class RoundTo8Bit(Step):
    """Round to the nearest level of 255, half to even, and clip: what a stored LQ could hold.

    What is rounded, here and by `Jpeg` before, are sums of float32 whose last bits depend on the
    processor that blurred and resized. A value halfway between two levels may go the other way on
    another kind of processor: what `reference` says of replays.
    """

    def apply(self, img: Image, **_: Any) -> Image:
        """Round."""
        levels: Image = img * np.float32(255)
        np.clip(np.rint(levels, out=levels), 0, 255, out=levels)
        levels /= np.float32(255)
        return levels
