"""Q-Align as a metric of the catalogue; the network is in models/qalign."""

from pathlib import Path

import torch
from torch import Tensor

from models.metrics.catalog import Judge, to_pixels
from models.qalign.scorer import QAlign

PUBLISHED = "q-future/one-align"


def load(variant: str, folder: str | Path | None, device: torch.device | str) -> Judge:
    """Load Q-Align in float16 on CUDA, else in float32.

    Args:
        variant: name of the question asked, see `models.qalign.prompts.PROMPTS`.
        folder: with the published files; None: those of the hub id `PUBLISHED`.
        device: where to score.

    Raises:
        ValueError: the files are missing, damaged or of another model.
    """
    model = QAlign.load(folder or PUBLISHED, device, prompt=variant)

    def compute(images: Tensor) -> Tensor:
        scores = model.score(to_pixels(images))
        return torch.tensor([score.value for score in scores], dtype=torch.float64)

    return Judge(compute, model.digest)
