"""The blind-face degradation of HQ into LQ, drawn by key and replayed from its record.

    parameters = draw_parameters(PRESETS["pmrf"], seed=0, key="00042", draw=3)
    degraded = degrade(image, parameters)                         # degraded.lq, degraded.hq
    record = to_dict(parameters)                                  # plain JSON, kept with the sample
    degrade(image, from_dict(DegradationParameters, record))      # the same bits again

A draw is a function of (configuration, seed, key, draw) alone, in any process. Replay is bit for
bit with the same OpenCV and NumPy on the same instruction set; others may differ in the last bit of
a float, which JPEG and rounding turn into a level here and there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from datasets.degradation.parameters import (
    ColorJitter,
    DegradationConfig,
    DegradationParameters,
    downscaled_size,
)
from datasets.degradation.steps import Image, replay, seeded, steps


@dataclass(frozen=True, slots=True)
class Degraded:
    """A pair for training, and how it came about."""

    lq: Image
    """Values are multiples of 1/255."""
    hq: Image
    """Flipped, and gray if ``parameters.gray_target``: the target that belongs to ``lq``."""
    parameters: DegradationParameters


def draw_parameters(
    config: DegradationConfig, *, seed: int, key: str, draw: int = 0
) -> DegradationParameters:
    """Draw the parameters of one degradation, a function of the arguments and of nothing else.

    Args:
        config: ranges and probabilities.
        seed: of the data set or of the run; a validation set keeps its own.
        key: of the sample.
        draw: which of the sample's draws; online training passes the epoch.
    """
    drawn: dict[str, Mapping[str, Any]] = {}
    for name, step in seeded(steps(config), seed=seed, key=key, draw=draw).items():
        if step.should_apply():
            drawn[name] = step.get_params()
    gray = "gray" in drawn
    return DegradationParameters(
        flip="flip" in drawn,
        **drawn["blur"],
        **drawn["downscale"],
        **drawn["noise"],
        jpeg_quality=drawn["jpeg"]["quality"],
        shift=drawn["shift"]["shift"] if "shift" in drawn else None,
        gray=gray,
        gray_target=gray and config.gray_target,
        color_jitter=_color_jitter(drawn["jitter"]) if "jitter" in drawn else None,
    )


def degrade(hq: npt.NDArray[Any], parameters: DegradationParameters) -> Degraded:
    """Degrade one image in the way that ``parameters`` record.

    Args:
        hq: RGB [H, W, 3], uint8 or float32 in [0, 1]; no side shorter than half the blur kernel.
        parameters: from `draw_parameters`, or from the JSON of an earlier draw.

    Raises:
        TypeError: ``hq`` is neither uint8 nor float32.
        ValueError: its shape or range is wrong, or it is too small for these parameters.
    """
    image = to_float(hq)
    check_size(image.shape[0], image.shape[1], parameters)
    composition = replay(recorded(parameters, image.shape), gray_target=parameters.gray_target)
    result = composition(image=image, hq=image)
    return Degraded(lq=result["image"], hq=result["hq"], parameters=parameters)


def to_float(hq: npt.NDArray[Any]) -> Image:
    """Check an HQ image and bring it from uint8 to float32 in [0, 1]; see `degrade`."""
    if hq.ndim != 3 or hq.shape[2] != 3:
        raise ValueError(
            f"hq has shape {list(hq.shape)}, expected [H, W, 3]: convert it to RGB before"
        )
    if hq.dtype == np.uint8:
        return hq.astype(np.float32) / np.float32(255)
    if hq.dtype != np.float32:
        raise TypeError(
            f"hq is {hq.dtype}, expected uint8, or float32 in [0, 1]: convert it before"
        )
    low, high = float(hq.min()), float(hq.max())
    if not 0 <= low <= high <= 1:  # NaN fails too
        raise ValueError(
            f"hq has values from {low:g} to {high:g}, expected float32 in [0, 1]: "
            "clip it, or map [-1, 1] to [0, 1] before"
        )
    return hq


def to_levels(picture: Image) -> npt.NDArray[np.uint8]:
    """[H, W, 3] in [0, 1] => uint8, to the nearest level."""
    return np.rint(picture * 255).astype(np.uint8)


def check_size(height: int, width: int, parameters: DegradationParameters) -> None:
    """Refuse an image that is too small for the blur or vanishes in the downscale."""
    least = parameters.kernel_size // 2 + 1
    if min(height, width) < least:
        raise ValueError(
            f"an image of {height} x {width} pixels is too small for a blur kernel of "
            f"{parameters.kernel_size}: its sides need at least {least}; use larger images"
        )
    downscaled_size(height, width, parameters.downscale)


def recorded(
    parameters: DegradationParameters, shape: tuple[int, ...]
) -> dict[str, dict[str, Any]]:
    """Translate a record into what `steps.replay` takes: arguments by applied step.

    Args:
        parameters: the record.
        shape: of the HQ image; LQ comes back to its height and width.
    """
    applied: dict[str, dict[str, Any]] = {
        "blur": {
            "blur_sigma": parameters.blur_sigma,
            "blur_angle": parameters.blur_angle,
            "kernel_size": parameters.kernel_size,
        },
        "downscale": {"downscale": parameters.downscale},
        "noise": {"noise_sigma": parameters.noise_sigma, "noise_seed": parameters.noise_seed},
        "jpeg": {"quality": parameters.jpeg_quality, "image_type": ".jpg"},
        "resize": {"size": shape[:2]},
        "round": {},
    }
    if parameters.flip:
        applied["flip"] = {}
    if parameters.shift is not None:
        applied["shift"] = {"shift": parameters.shift}
    if parameters.gray:
        applied["gray"] = {}
    if (jitter := parameters.color_jitter) is not None:
        applied["jitter"] = {name: getattr(jitter, name) for name in ColorJitter.__slots__}
    return applied


def _color_jitter(drawn: Mapping[str, Any]) -> ColorJitter:
    return ColorJitter(**{**drawn, "order": tuple(drawn["order"])})
