"""How data are read: the same way by every recipe."""

from collections.abc import Mapping
from typing import Any

import torch

from datasets.images import ImageSet
from datasets.latents import LatentPairs
from datasets.loading import Loader, LoaderConfig
from datasets.order import Layout
from datasets.ranged import Cache
from infra.storage import local_path
from trainers.loop_config import LoopConfig


def open_images(path: str, loop: LoopConfig, split: str = "train") -> ImageSet:
    """Open an image set, through the cache if there is one."""
    return ImageSet(local_path(path), split=split, cache=_cache(loop))


def open_latents(path: str, loop: LoopConfig, split: str) -> LatentPairs:
    """Open a latent set, through the cache if there is one."""
    return LatentPairs(local_path(path), split=split, cache=_cache(loop))


def named(path: str, samples: ImageSet | LatentPairs) -> tuple[str, str, str, str]:
    """Name a set that is trained on: its folder's name, the set's digest, where it is, its use."""
    return local_path(path).name, samples.digest.partition("/")[0], path, "training"


def _cache(loop: LoopConfig) -> Cache | None:
    return Cache(local_path(loop.cache), int(1e9 * loop.cache_gb)) if loop.cache else None


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
