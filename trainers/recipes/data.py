"""Opening and reading of data for training and validation, the same in every recipe."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from datasets.reading.image_set import ImageSet
from datasets.reading.latents import LatentPairs
from datasets.reading.loader import Loader, LoaderConfig
from datasets.reading.order import Layout
from datasets.reading.ranges import Cache
from infra.distributed import rank, world_size
from infra.errors import UserError
from infra.storage import local_path
from trainers.loop.config import LoopConfig
from trainers.loop.noise import Noise


def open_images(path: str, loop: LoopConfig, split: str = "train") -> ImageSet:
    """Open an image set, through the cache if there is one."""
    return ImageSet(local_path(path), split=split, cache=_cache(loop))


def open_latents(path: str, loop: LoopConfig, split: str) -> LatentPairs:
    """Open a latent set, through the cache if there is one."""
    return LatentPairs(local_path(path), split=split, cache=_cache(loop), checked=loop.check_data)


def named(path: str, samples: ImageSet | LatentPairs) -> tuple[str, str, str, str]:
    """Name a set that is trained on: its folder's name, the set's digest, where it is, its use."""
    return local_path(path).name, samples.digest.partition("/")[0], path, "training"


def _cache(loop: LoopConfig) -> Cache | None:
    return (
        Cache(local_path(loop.cache), int(1e9 * loop.cache_gb))
        if loop.cache and not loop.dry_run
        else None
    )


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
        samples: as in `datasets.reading.loader.Samples`.
        layout: this rank among the others.
        state: from a checkpoint; None starts at the beginning.
        loop: seed, workers and skip budget.
        device: where the batches go; to a GPU they go from page-locked memory.
        processes: whether loading is computation, such as decoding and degrading.

    Raises:
        UsageError: the state is a position in other samples.
    """
    if state is not None and isinstance(samples, LatentPairs):
        samples.refuse_if_grown(state)
    settings = LoaderConfig(
        seed=loop.seed,
        workers=loop.workers,
        processes=processes,
        pin_memory=device.type == "cuda",
        skip_budget=loop.skip_budget,
    )
    return Loader(samples, layout, settings, state)


BATCH = 4  # samples of a rank in each batch of a validation
SEED = 0  # of a validation's degradations and noise; the same in every run, to compare runs


def held_out(path: str, loop: LoopConfig) -> ImageSet:
    """Open the held-out images of a set.

    Raises:
        UserError: there are none.
    """
    return open_images(path, loop, split="val")


def sweep(samples: Any, workers: int, device: torch.device) -> Iterator[tuple[Any, int, Noise]]:
    """Yield this rank's batches, the number of samples that count, and their fixed noise.

    Args:
        samples: one data set.
        workers: threads that read ahead.
        device: where the noise is drawn.

    Raises:
        UserError: there are fewer samples than ranks.
    """
    size, ranks = samples.weighted_sets[0].size, world_size()
    if size < ranks:
        raise UserError(f"{size} held-out samples for {ranks} ranks: hold more out")
    layout = Layout(ranks=ranks, rank=rank(), micro_batch=min(BATCH, size // ranks))
    loader = Loader(samples, layout, LoaderConfig(seed=SEED, workers=workers))
    for number, (batch, count) in enumerate(loader.sweep()):
        positions = layout.share(number * layout.stride).tolist()
        if count:
            noise = Noise(seed=SEED, step=0, positions=positions, total=size, device=device)
            yield batch, count, noise
