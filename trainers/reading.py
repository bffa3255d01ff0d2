"""How training data are read: the same way by every recipe, from its samples on."""

from collections.abc import Mapping
from typing import Any

import torch

from datasets.loading import Loader, LoaderConfig
from datasets.order import Layout
from trainers.loop_config import LoopConfig


def training_loader(
    samples: Any,
    layout: Layout,
    state: Mapping[str, Any] | None,
    loop: LoopConfig,
    device: torch.device,
    *,
    processes: bool,
) -> Loader[Any]:
    """Open training samples where ``state`` says.

    Args:
        samples: as in `datasets.loading.Samples`.
        layout: this rank's place.
        state: from a checkpoint; None starts at the beginning.
        loop: seed, workers and skip budget.
        device: where the batches go; to a GPU they go from page-locked memory.
        processes: whether loading is computation, such as decoding and degrading.
    """
    settings = LoaderConfig(
        seed=loop.seed,
        workers=loop.workers,
        processes=processes,
        pin_memory=device.type == "cuda",
        skip_budget=loop.skip_budget,
    )
    return Loader(samples, layout, settings, state)
