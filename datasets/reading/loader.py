"""Loaders: batches in the order's sequence, read ahead by threads or processes.

    loader = Loader(LatentPairs(folder), Layout(ranks=8, rank=3, micro_batch=8), LoaderConfig())
    for batch, state in loader:             # endless; the trainer counts its steps
        ...                                 # state: resume here to go on after this batch
    Loader(pairs, Layout(ranks=2, ...), config, state)      # the rest, on another layout

Which samples a batch holds is decided before a worker gets it, so the number of workers changes
only how soon it is there. The state counts the batches that were handed out, not those read ahead.
Latents on a disk are read by threads: a system call lets other threads run, and nothing is copied
between processes. Images are decoded by processes, through PyTorch's DataLoader, because decoding
is computation, and so are the requests by which latents come from a bucket.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from datasets.reading.memory import Memory
from datasets.reading.order import Layout, Order, Picks, WeightedSet, sweep
from infra.ahead import map_ahead
from infra.children import live_with_parent, signals_held, start_helpers
from infra.errors import UsageError, UserError

logger = logging.getLogger(__name__)
LOOKED_UP = 16  # steps whose picks are computed at once, which costs less than one by one


class Batch(Protocol):
    """The properties that every kind of batch has."""

    @property
    def skipped(self) -> Sequence[str]:
        """One message for each sample that could not be read and was replaced by another."""

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory."""


B_co = TypeVar("B_co", bound=Batch, covariant=True)


class Samples(Protocol[B_co]):
    """Samples that can be loaded by number; goes to worker processes by pickle."""

    @property
    def weighted_sets(self) -> Sequence[WeightedSet]:
        """The data sets that are mixed, with their weights."""

    @property
    def digest(self) -> str:
        """Identity of the data."""

    def load(self, picks: Picks, memory: Memory) -> B_co:
        """Load the picked samples into memory taken from ``memory``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig:
    """How batches are loaded; of all options only the seed changes what they hold."""

    seed: int = 0
    """Seed of the shuffle, the crops, the flips and the degradations."""
    workers: int = 2
    """Threads or processes that read ahead; with 0 each batch is read when it is asked for."""
    processes: bool = False
    """Whether the workers are processes, for decoding and degrading; latents need threads only."""
    start_method: str = "forkserver"
    """How processes start. `fork` is fast, but unsafe beside threads or CUDA; processes of `spawn`
    may abort with a message as they end (PyTorch 2.13)."""
    ahead: int = 2
    """Batches that each worker reads ahead."""
    pin_memory: bool = False
    """Whether batches lie in page-locked memory, for copies to a GPU beside the computation."""
    skip_budget: int = 0
    """Unreadable samples that each rank may skip in one run of the program before it stops."""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.skip_budget < 0:
            raise UsageError(
                f"workers {self.workers}, skip_budget {self.skip_budget}: expected 0 or more"
            )
        if self.ahead < 1:
            raise UsageError(f"ahead {self.ahead}: expected at least 1 batch per worker")
        if self.start_method not in ("fork", "spawn", "forkserver"):
            raise UsageError(
                f"start_method {self.start_method!r}: expected fork, spawn or forkserver"
            )


class Loader(Generic[B_co]):
    """The batches of one rank.

    Args:
        samples: the data.
        layout: this rank among the others.
        config: how batches are loaded.
        state: position to go on from, of a checkpoint of any layout; None starts at the beginning.

    Attributes:
        order: the sequence of samples.
        skipped: number of samples that this rank has skipped so far.

    Raises:
        UsageError: the layout cannot be served, or the state belongs to other data.
    """

    def __init__(
        self,
        samples: Samples[B_co],
        layout: Layout,
        config: LoaderConfig,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.samples = samples
        self.layout = layout
        self.config = config
        self.order = Order(samples.weighted_sets, digest=samples.digest, seed=config.seed)
        self.order.check(layout)
        self.skipped = 0
        self._position = 0 if state is None else self.order.position(state)

    @property
    def state(self) -> dict[str, Any]:
        """Position after the last batch that was handed out, for a checkpoint."""
        return self.order.state(self._position)

    def __iter__(self) -> Iterator[tuple[B_co, dict[str, Any]]]:
        """Yield batches without end, each with the state after it; a second loop goes on there."""
        for batch in self._loaded(self._picks()):
            self._position += self.layout.stride
            yield batch, self.state
            del batch  # so that its memory can be reused while the next batch is read

    def _picks(self) -> Iterator[Picks]:
        """Yield the picks from the position on without end, computed for many steps at once."""
        size = self.layout.micro_batch
        ahead = self.layout.stride * np.arange(LOOKED_UP)[:, None]
        for start in itertools.count(self._position, self.layout.stride * LOOKED_UP):
            picked = self.order.at((ahead + self.layout.share(start)).reshape(-1))
            for step in range(0, LOOKED_UP * size, size):
                yield picked[step : step + size]

    def sweep(self, limit: int | None = None) -> Iterator[tuple[B_co, int]]:
        """Yield one plain pass for validation, with how many samples of each batch count.

        See `datasets.reading.order.sweep`; the position of the endless sequence stays where it is.

        Args:
            limit: how many samples to take at most, evenly spaced over the set; None takes all.

        Raises:
            UsageError: a mixture, which has no plain pass.
        """
        if len(self.samples.weighted_sets) > 1:
            raise UsageError("validation runs over one data set; give a loader to each")
        size = self.samples.weighted_sets[0].size
        shares = list(sweep(size, self.layout, self.config.seed, limit))
        batches = self._loaded(picks for picks, _ in shares)
        yield from zip(batches, (count for _, count in shares), strict=True)

    def _loaded(self, sequence: Iterable[Picks]) -> Iterator[B_co]:
        in_processes = self.config.processes and self.config.workers > 0
        load = self._by_processes if in_processes else self._by_threads
        for batch in load(sequence):
            if isinstance(batch, UserError):
                raise batch
            self._count(batch.skipped)
            yield batch
            del batch

    def _by_threads(self, sequence: Iterable[Picks]) -> Iterator[B_co | UserError]:
        workers = self.config.workers
        load = partial(
            self.samples.load, memory=Memory("pinned" if self.config.pin_memory else "reused")
        )
        return map_ahead(load, sequence, threads=workers, ahead=workers * self.config.ahead)

    def _by_processes(self, sequence: Iterable[Picks]) -> Iterator[B_co | UserError]:
        if self.config.start_method == "forkserver":
            start_helpers()
        with signals_held():
            return iter(
                DataLoader(
                    _Served(self.samples),
                    batch_size=None,  # what the sampler yields is a whole batch already
                    sampler=sequence,
                    num_workers=self.config.workers,
                    prefetch_factor=self.config.ahead,
                    multiprocessing_context=self.config.start_method,
                    collate_fn=_as_it_is,
                    pin_memory=self.config.pin_memory,
                    worker_init_fn=_begin_worker,
                    generator=torch.Generator(),  # or it would draw from the global generator
                )
            )

    def _count(self, skipped: Sequence[str]) -> None:
        for message in skipped:
            self.skipped += 1
            if self.skipped > self.config.skip_budget:
                raise UserError(
                    f"{message} ({self.skipped} unreadable samples on rank {self.layout.rank}; "
                    f"skip_budget is {self.config.skip_budget})"
                )
            logger.warning("skipped %d: %s", self.skipped, message)


class _Served(torch.utils.data.Dataset[Any]):
    """Samples as PyTorch's DataLoader wants them: an index is the picks of a whole batch.

    What the user is to read comes in the place of a batch: DataLoader would put a traceback around
    it.
    """

    def __init__(self, samples: Samples[Any]) -> None:
        self.samples = samples
        self.memory = Memory("shared")

    def __getitem__(self, picks: Picks) -> Any:
        try:
            return self.samples.load(picks, self.memory)
        except UserError as error:
            return error


def _begin_worker(_: int) -> None:
    live_with_parent()


def _as_it_is(batch: Any) -> Any:
    return batch


def stand_ins(unreadable: Mapping[int, str], count: int) -> dict[int, int]:
    """Choose for every unreadable row of a batch the next readable one, to stand in its place.

    Raises:
        UserError: no row could be read.
    """
    if len(unreadable) == count > 0:
        raise UserError(f"no sample of a batch of {count} could be read: {unreadable[0]}")
    return {
        row: next(
            other % count for other in itertools.count(row + 1) if other % count not in unreadable
        )
        for row in unreadable
    }
