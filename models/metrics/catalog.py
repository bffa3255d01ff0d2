"""Every metric of pictures in one table: what it takes, which way is better, how it is loaded.

Curation's scorers, the trainers' validation and their choice of the best checkpoint read it.
Another metric is a module beside this one, with a function that loads it, and a line in `METRICS`.
The table imports neither PyTorch nor a metric until one is loaded.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor


class Judge(NamedTuple):
    """A metric that is ready to use."""

    compute: "Callable[..., Tensor]"
    """From uint8 images [B, 3, H, W], and references of the same shape if the metric needs them, to
    one value for each, [B]; NaN where it is not defined. No value depends on the other images."""
    digest: str = ""
    """Of its weights or parameters, SHA-256; empty for a formula without any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What is known of a metric without loading it."""

    loader: str
    """MODULE:FUNCTION, called with the variant, the folder of weights or None, and the device."""
    variant: str = ""
    """Which of several definitions or sets of weights; their values are not compared."""
    needs_reference: bool
    """Whether it compares an image with another."""
    higher_is_better: bool
    """Its direction."""
    min_side: int = 1
    """Pixels that an image must have on each side."""
    scale: tuple[float, float] | None = None
    """Typical lowest and highest value, for metrics that curation scores by; not bounds."""
    default_threshold: float | None = None
    """What curation keeps when the user names no threshold; None keeps everything."""

    def load(self, folder: str | Path | None = None, device: "torch.device | str" = "cpu") -> Judge:
        """Load the metric.

        Args:
            folder: where its weights are; None: where the metric's module looks for them.
            device: where to compute.

        Raises:
            ValueError: weights are missing, damaged or of another network; the message says which
                and where to get them. `models.checkpoint.CheckpointError` is such an error.
        """
        module, _, function = self.loader.partition(":")
        judge: Judge = getattr(importlib.import_module(module), function)(
            self.variant, folder, device
        )
        return judge


METRICS: dict[str, Metric] = {
    "psnr": Metric(
        loader="models.metrics.fidelity:load_psnr", needs_reference=True, higher_is_better=True
    ),
    "ms_ssim": Metric(
        loader="models.metrics.fidelity:load_ms_ssim",
        needs_reference=True,
        higher_is_better=True,
        min_side=161,
    ),
    "lpips": Metric(
        loader="models.metrics.lpips:load",
        variant="alex",
        needs_reference=True,
        higher_is_better=False,
        min_side=31,
    ),
    "lpips_vgg": Metric(
        loader="models.metrics.lpips:load",
        variant="vgg",
        needs_reference=True,
        higher_is_better=False,
        min_side=16,
    ),
    "brisque": Metric(
        loader="models.metrics.brisque:load_judge",
        needs_reference=False,
        higher_is_better=False,
        min_side=16,
        # Crops of real photographs scored from -13 (crisp texture) to 116 (empty gradients). Above
        # 40 they begin to be out of focus or empty; textured parts of fair ones lie below 30.
        scale=(0.0, 100.0),
        default_threshold=40.0,
    ),
    "qalign": Metric(
        loader="models.metrics.qalign:load",
        variant="quality",
        needs_reference=False,
        higher_is_better=True,
        scale=(1.0, 5.0),
        default_threshold=3.5,  # the paper's
    ),
}


def to_pixels(images: "Tensor") -> "list[npt.NDArray[np.uint8]]":
    """uint8 images [B, 3, H, W] => an array [H, W, 3] of each, as metrics outside PyTorch take."""
    return list(images.permute(0, 2, 3, 1).cpu().numpy())


def best_by(name: str) -> str:
    """Name a metric for the choice of the best checkpoint: prefixed by "-" if less is better."""
    return name if METRICS[name].higher_is_better else f"-{name}"
