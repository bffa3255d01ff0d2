"""One pass over held-out samples, shared out among the ranks, the same at every validation."""

from collections.abc import Iterator
from typing import Any

import torch

from datasets.images import ImageSet
from datasets.loading import Loader, LoaderConfig
from datasets.order import Layout
from infra.distributed import rank, world_size
from infra.errors import UserError
from trainers.draws import Draws
from trainers.loop_config import LoopConfig
from trainers.reading import open_images

BATCH = 4  # samples of a rank
SEED = 0  # of degradations and noise, the same for every run, so that runs compare


def held_out(path: str, loop: LoopConfig) -> ImageSet:
    """Open the held-out images of a set.

    Raises:
        UserError: there are none.
    """
    try:
        return open_images(path, loop, split="val")
    except UserError as error:
        raise UserError(
            f"{error}; validation needs held-out images: curate with --val-fraction 0.05"
        ) from error


def sweep(samples: Any, workers: int, device: torch.device) -> Iterator[tuple[Any, int, Draws]]:
    """Yield this rank's batches, how many samples of each count, and their fixed numbers.

    Args:
        samples: one data set.
        workers: threads that read ahead.
        device: where the numbers are drawn.

    Raises:
        UserError: there are fewer samples than ranks.
    """
    size, ranks = samples.parts[0].size, world_size()
    if size < ranks:
        raise UserError(f"{size} held-out samples for {ranks} ranks: hold more out")
    layout = Layout(ranks=ranks, rank=rank(), micro_batch=min(BATCH, size // ranks))
    loader = Loader(samples, layout, LoaderConfig(seed=SEED, workers=workers))
    for number, (batch, count) in enumerate(loader.sweep()):
        positions = layout.share(number * layout.stride).tolist()
        if count:
            draws = Draws(seed=SEED, step=0, positions=positions, total=size, device=device)
            yield batch, count, draws
