"""Distances of whole sets of features at the size of FFHQ: seconds and memory of a process.

The features are synthetic: normal, of another mean and width in the second set. Each distance runs
once, in its own process, with as many threads as OMP_NUM_THREADS says.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks.models import peak_memory

IMAGES = 70_000
WIDTHS = {"fid": 2048, "fid_dinov2": 1024, "mmd_dinov2": 1024}  # features of an image


def distance_of_sets(name: str, images: int = IMAGES) -> dict[str, Any]:
    """Measure the distance of two sets of so many features, and the features' own memory."""
    width = WIDTHS[name]
    return {
        "images": images,
        "features": width,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "two_sets_of_features_mib": round(2 * images * width * 4 / 2**20),
        **peak_memory(_distance, name, images, width),
    }


def _distance(name: str, images: int, width: int) -> Callable[[], dict[str, float]]:
    """Draw both sets in float32, as the networks give them; return the distance, clocked."""
    import torch

    from models.metrics.frechet import frechet_distance
    from models.metrics.mmd import mmd

    distance = mmd if name.startswith("mmd") else frechet_distance
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, width, generator=generator) * 0.3
    y = torch.randn(images, width, generator=generator).mul_(0.31).add_(0.01)

    def call() -> dict[str, float]:
        start, spent = time.perf_counter(), time.process_time()
        value = distance(x, y)
        return {
            "value": value,
            "seconds": round(time.perf_counter() - start, 1),
            "processor_seconds": round(time.process_time() - spent, 1),
        }

    return call
