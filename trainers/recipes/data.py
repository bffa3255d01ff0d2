"""Opening and reading of data for training and validation, the same in every recipe."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from datasets.reading import order
from datasets.reading.image_set import ImageSet
from datasets.reading.images import Crops, Mixture, OnlinePairs
from datasets.reading.latents import LatentPairs
from datasets.reading.loader import Loader, LoaderConfig
from datasets.reading.order import Layout
from datasets.reading.ranges import Cache
from datasets.sets import EmptySplitError
from infra.config import digest
from infra.distributed import rank, world_size
from infra.errors import UserError
from infra.paths import path_of
from infra.storage import local_path
from trainers.loop.config import LoopConfig
from trainers.loop.noise import Noise
from trainers.loop.task import Between, unwatched


def open_images(path: str, loop: LoopConfig, split: str = "train") -> ImageSet:
    """Open an image set, through the cache if there is one."""
    with _way_out(split):
        return ImageSet(path_of(path), split=split, cache=_cache(loop))


def open_latents(path: str, loop: LoopConfig, split: str) -> LatentPairs:
    """Open a latent set, through the cache if there is one."""
    with _way_out(split):
        return LatentPairs(path_of(path), split=split, cache=_cache(loop), checked=loop.check_data)


@contextmanager
def _way_out(split: str) -> Iterator[None]:
    """Add to the refusal of a set without held-out samples how to train on it all the same."""
    try:
        yield
    except EmptySplitError as error:
        without = ", or leave validation out: --validate-every 0" if split == "val" else ""
        raise UserError(f"{error}{without}") from error


def named(path: str, samples: ImageSet | LatentPairs) -> tuple[str, str, str, str]:
    """Name a set that is trained on: its folder's name, the set's digest, where it is, its use."""
    return path_of(path).name, samples.digest.partition("/")[0], path, "training"


def _cache(loop: LoopConfig) -> Cache | None:
    return (
        Cache(local_path(loop.cache), int(1e9 * loop.cache_gb))
        if loop.cache and not loop.dry_run
        else None
    )


def training_loader(
    samples: Crops | OnlinePairs | LatentPairs,
    layout: Layout,
    state: Mapping[str, Any] | None,
    loop: LoopConfig,
    device: torch.device,
) -> Loader[Any]:
    """Open training samples where ``state`` says.

    Args:
        samples: for training.
        layout: this rank among the others.
        state: from a checkpoint; None starts at the beginning.
        loop: seed, workers and skip budget.
        device: where the batches go; to a GPU they go from page-locked memory.

    Raises:
        UsageError: the state is a position in other samples.
    """
    if state is not None and isinstance(samples, LatentPairs):
        samples.refuse_if_grown(state)
    settings = LoaderConfig(
        seed=loop.seed,
        workers=loop.workers,
        processes=samples.takes_processor,
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


def sweep(
    samples: Any,
    loop: LoopConfig,
    device: torch.device,
    between: Between = unwatched,
    what: str = "samples",
) -> Iterator[tuple[Any, int, Noise]]:
    """Yield this rank's batches, the number of samples that count, and their fixed noise.

    Args:
        samples: one data set.
        loop: threads that read ahead, and how many samples to take at most.
        device: where the noise is drawn.
        between: is called before each batch.
        what: are swept, for the person who watches.

    Raises:
        UserError: there are fewer samples than ranks.
    """
    count, layout = _shares(samples, loop)
    settings = LoaderConfig(seed=SEED, workers=loop.workers, pin_memory=device.type == "cuda")
    loader = Loader(samples, layout, settings)
    batches = -(-count // layout.stride)
    for number, (batch, some) in enumerate(loader.sweep(loop.validate_limit)):
        between(what, number, batches)
        positions = layout.share(number * layout.stride).tolist()
        if some:
            noise = Noise(seed=SEED, step=0, positions=positions, total=count, device=device)
            yield batch, some, noise


def swept(samples: Any, loop: LoopConfig) -> list[int]:
    """List the numbers of the samples that count in this rank's batches, in their order."""
    _, layout = _shares(samples, loop)
    shares = order.sweep(samples.weighted_sets[0].size, layout, SEED, loop.validate_limit)
    return [number for picks, some in shares for number in picks.index[:some].tolist()]


def held_out_count(samples: Any, loop: LoopConfig) -> int:
    """Return how many samples a sweep takes."""
    size: int = samples.weighted_sets[0].size
    return size if loop.validate_limit is None else min(size, loop.validate_limit)


def judged_on(
    samples: Sequence[Mixture], loop: LoopConfig, identities: Mapping[str, str]
) -> dict[str, Any]:
    """Tell what a validation's numbers depend on besides the network, for `Task.facts`.

    Args:
        samples: swept one after the other.
        loop: how many are taken of each.
        identities: of the metrics, by name.
    """
    degradations = [asdict(one.degradation) for one in samples if isinstance(one, OnlinePairs)]
    return {
        "set": digest([one.digest for one in samples]),
        "images": sum(held_out_count(one, loop) for one in samples),
        "degradation": digest(degradations) if degradations else "none",
        "seed": SEED,
        "metrics": dict(identities),
    }


def _shares(samples: Any, loop: LoopConfig) -> tuple[int, Layout]:
    """Return how many samples a sweep takes, and how ranks share them."""
    count, ranks = held_out_count(samples, loop), world_size()
    if count < ranks:
        raise UserError(
            f"{count} held-out samples for {ranks} ranks: hold more out, by --val-fraction of "
            "pipelines.curate, or raise --validate-limit"
        )
    return count, Layout(ranks=ranks, rank=rank(), micro_batch=min(BATCH, count // ranks))


def keys_of_sources(samples: Mixture, numbers: Sequence[int], count: int) -> list[str]:
    """Choose samples to look at: far from each other, and of as many photographs as there are.

    Args:
        samples: of one image set.
        numbers: of the samples to choose from.
        count: how many to choose at most.

    Returns:
        Their keys, in the order of ``numbers``.

    Raises:
        UserError: a sample's JSON cannot be read.
    """
    (images,) = samples.sets
    spaced = [numbers[place * len(numbers) // count] for place in range(min(count, len(numbers)))]
    chosen: dict[Any, int] = {}  # by source; further ones of a source by themselves
    for number in [*spaced, *numbers]:
        if len(chosen) < count:
            chosen.setdefault(_source(images, number), number)
    for number in [*spaced, *numbers]:
        if len(chosen) < count and number not in chosen.values():
            chosen[number] = number
    return [images.key(number) for number in numbers if number in chosen.values()]


def shorter_side(images: ImageSet) -> int:
    """Return the pixels of the shorter side of a set's first image."""
    return int(min(images.pixels(0).shape[:2]))


def _source(images: ImageSet, number: int) -> str:
    """Name the photograph of a sample; a set of images alone, without JSON, has one for each."""
    row = images.row(number)
    label = {} if row["json_offset"] is None else images.label(row)
    return str(label.get("source", row["key"]))
