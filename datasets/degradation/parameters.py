"""The configuration of a degradation, and the parameters of one that was drawn, as plain data.

Everything here is JSON through `infra.config.to_dict` and `from_dict`; nothing heavy is imported,
so that configurations of programs can hold a `DegradationConfig`.
"""

import math
from typing import Annotated

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from infra.config import STRICT

NOISE_SEEDS = 1 << 53
"""Noise seeds are below this: every JSON reader keeps such an integer exactly."""

Probability = Annotated[float, Field(ge=0, le=1)]
BlurSigma = Annotated[float, Field(ge=1e-3, le=1e3)]
Angle = Annotated[float, Field(ge=-math.pi, le=math.pi)]
Downscale = Annotated[float, Field(ge=0.1, le=1e3)]
Levels = Annotated[float, Field(ge=0, le=255)]
Shift = Annotated[float, Field(ge=-255, le=255)]
Factor = Annotated[float, Field(ge=0, le=10)]
Turns = Annotated[float, Field(ge=-0.5, le=0.5)]

_RANGES = (
    *("blur_sigma", "blur_angle", "downscale", "noise_sigma", "jpeg_quality"),
    *("brightness", "contrast", "saturation", "hue"),
)


def _require_odd(kernel_size: int) -> None:
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size {kernel_size}: expected an odd number; the paper uses 41")


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class DegradationConfig:
    """The ranges that each parameter is drawn from; the defaults are DifFace's and PMRF's training.

    A parameter is uniform between two ends; with ``among``, every listed value is equally likely.
    """

    flip_probability: Probability = 0.5
    """Share of draws that mirror HQ (and so LQ) left to right; 0 where the caller flips."""
    kernel_size: PositiveInt = 41
    """Side of the blur kernel in pixels, odd."""
    blur_sigma: tuple[BlurSigma, ...] = (0.1, 15.0)
    """Standard deviation of the blur along each axis, in pixels."""
    isotropic_probability: Probability = 0.5
    """Share of draws with one standard deviation for both axes."""
    blur_angle: tuple[Angle, ...] = (-math.pi, math.pi)
    """Angle of the first axis in radians, from x towards y; anisotropic draws only."""
    downscale: tuple[Downscale, ...] = (0.8, 32.0)
    """Factor s: a side of n pixels becomes int(n // s)."""
    noise_sigma: tuple[Levels, ...] = (0.0, 20.0)
    """Standard deviation of the Gaussian noise, in levels of 255."""
    jpeg_quality: tuple[Annotated[float, Field(ge=1, le=100)], ...] = (30.0, 100.0)
    """JPEG quality before truncation to an integer: [30, 100] gives 30 to 99, as in PMRF."""
    shift_probability: Probability = 0.0
    """Share of draws that add one constant to each channel of LQ."""
    shift_limit: Levels = 20.0
    """Each constant is uniform in [-limit, limit], in levels of 255."""
    gray_probability: Probability = 0.01
    """Share of draws whose LQ loses its colour."""
    gray_target: bool = True
    """Whether HQ loses its colour together with LQ: then the target of training changes too."""
    jitter_probability: Probability = 0.0
    """Share of draws that jitter brightness, contrast, saturation and hue of LQ."""
    brightness: tuple[Factor, Factor] = (0.5, 1.5)
    """Range of the brightness factor."""
    contrast: tuple[Factor, Factor] = (0.5, 1.5)
    """Range of the contrast factor."""
    saturation: tuple[Factor, Factor] = (0.0, 1.5)
    """Range of the saturation factor."""
    hue: tuple[Turns, Turns] = (-0.1, 0.1)
    """Range of the hue shift, in turns."""
    among: bool = False
    """Whether blur, downscale, noise and quality are drawn from listed values, not between ends."""

    def __post_init__(self) -> None:
        _require_odd(self.kernel_size)
        for name in _RANGES:
            values = getattr(self, name)
            if not self.among and (len(values) != 2 or values[0] > values[1]):
                raise ValueError(
                    f"{name} {values}: expected two ends in rising order; "
                    "to draw from a list of values, set among"
                )
            if not values:
                raise ValueError(f"{name} is empty: list at least one value")


PRESETS: dict[str, DegradationConfig] = {
    # DifFace's training, which PMRF and Latent-PMRF take over; what the predictor was trained on
    "pmrf": DegradationConfig(),
    # the same degradations seen in images of 128 pixels: lengths a quarter of those at 512
    "pmrf-128": DegradationConfig(kernel_size=11, blur_sigma=(0.1, 3.75), downscale=(0.8, 8.0)),
    # GFPGAN v1: milder, with both colour jitters; HQ keeps its colour
    "gfpgan-v1": DegradationConfig(
        blur_sigma=(0.1, 10.0),
        downscale=(0.8, 8.0),
        jpeg_quality=(60.0, 100.0),
        shift_probability=0.3,
        jitter_probability=0.3,
        gray_target=False,
    ),
    # the values of DifFace's own synthetic test set, which enumerates their 4,000 combinations
    # (the second sigma drawn); here each is drawn. Not CelebA-Test, which is downloaded
    "difface-test": DegradationConfig(
        flip_probability=0.0,
        blur_sigma=(4.0, 8.0, 12.0, 16.0),
        isotropic_probability=0.0,
        blur_angle=(0.0, 0.25 * math.pi, 0.5 * math.pi, 0.75 * math.pi),
        downscale=(4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0, 32.0, 36.0, 40.0),
        noise_sigma=(1.0, 5.0, 10.0, 15.0, 20.0),
        jpeg_quality=(30.0, 40.0, 50.0, 60.0, 70.0),
        gray_probability=0.0,
        among=True,
    ),
}


def degradation_preset(name: str) -> DegradationConfig:
    """Return the preset called ``name``.

    Raises:
        ValueError: no preset has that name; the message lists those that exist.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown degradation preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class ColorJitter:
    """One drawn colour jitter; the four adjustments are applied in ``order``."""

    brightness: Factor
    contrast: Factor
    saturation: Factor
    hue: Turns
    """In turns: 0.5 is the opposite colour."""
    order: tuple[int, ...]
    """A permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue."""

    def __post_init__(self) -> None:
        if sorted(self.order) != [0, 1, 2, 3]:
            raise ValueError(f"order {self.order}: expected 0, 1, 2 and 3, each once")


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class DegradationParameters:
    """All parameters of one degradation; applied to its HQ image again, they give the same LQ."""

    flip: bool
    """Whether HQ was mirrored left to right first."""
    blur_sigma: tuple[BlurSigma, BlurSigma]
    """Standard deviations of the blur along its two axes, in pixels; equal if isotropic."""
    blur_angle: Angle
    """Angle of the first axis in radians; 0 if isotropic."""
    kernel_size: int
    """Side of the blur kernel in pixels."""
    downscale: Downscale
    """Factor s of the downscale."""
    noise_sigma: Levels
    """Standard deviation of the noise, in levels of 255."""
    noise_seed: Annotated[int, Field(ge=0, lt=NOISE_SEEDS)]
    """Key of the Philox generator that gives the noise field."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)]
    """Quality of the JPEG, 1 to 100."""
    shift: tuple[Shift, Shift, Shift] | None = None
    """What was added to red, green and blue of LQ, in levels of 255."""
    gray: bool = False
    """Whether LQ lost its colour."""
    gray_target: bool = False
    """Whether HQ lost its colour too: then it differs from what is in the shard."""
    color_jitter: ColorJitter | None = None
    """The colour jitter of LQ."""

    def __post_init__(self) -> None:
        _require_odd(self.kernel_size)
        if self.gray_target and not self.gray:
            raise ValueError("gray_target without gray: HQ loses its colour only together with LQ")

    @property
    def isotropic(self) -> bool:
        """Whether the blur is the same in every direction, hence separable."""
        return self.blur_sigma[0] == self.blur_sigma[1]

    @property
    def severity(self) -> dict[str, float]:
        """Four numbers to slice metrics by; the blur is the root mean square of both sigmas."""
        return {
            "blur_sigma": math.sqrt((self.blur_sigma[0] ** 2 + self.blur_sigma[1] ** 2) / 2),
            "downscale": self.downscale,
            "noise_sigma": self.noise_sigma,
            "jpeg_quality": float(self.jpeg_quality),
        }


def downscaled_size(height: int, width: int, downscale: float) -> tuple[int, int]:
    """Return (height, width) after the downscale: int(n // s), 639 for s = 0.8 and n = 512.

    Raises:
        ValueError: a side would vanish.
    """
    size = int(height // downscale), int(width // downscale)
    if min(size) < 1:
        raise ValueError(
            f"an image of {height} x {width} pixels cannot be downscaled by {downscale:g}: "
            f"its sides need at least {math.ceil(downscale)} pixels; "
            "use larger images or a smaller downscale"
        )
    return size
