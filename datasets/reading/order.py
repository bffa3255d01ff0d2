"""The order of samples: one endless sequence that every rank computes for itself, and alike.

    sets = [WeightedSet(size=84_991), WeightedSet(size=10_000, weight=2.0)]
    order = Order(sets, digest="…", seed=0)
    order.at(np.arange(128, 192))           # which samples stand at these positions

An epoch is ``order.epoch`` consecutive positions and holds every sample as often as its set's
weight says; epochs follow each other without a gap. A global step takes the next ``ranks x
micro_batch`` positions and may reach into the next epoch, so every rank has the same number of
full batches, and there is no remainder to drop or to pad. What stands at a position is a function
of (digest, seed, position). Hence the state of a run is one number, and it means the same on any
number of ranks, with any batch size and any workers.

The shuffle sorts Philox's counter-based random words, whose stream NumPy guarantees to keep: 5 ms
for 70,000 samples and 0.13 s for 1.3 million, once an epoch, and 8 bytes a sample.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.config import canonical_json, differences
from infra.config import digest as digest_of
from infra.errors import UsageError

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedSet:
    """One data set in a mixture."""

    size: int
    """Number of its samples."""
    weight: float = 1.0
    """How often an epoch holds each sample: 1 is once, 2 twice, 0.5 in every second epoch."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"a data set of {self.size} samples: expected at least 1")
        if not 0 < self.weight < 2**20:  # NaN fails too
            raise UsageError(f"weight {self.weight}: expected a positive number, 1 for each once")

    @property
    def taken(self) -> int:
        """Number of samples that an epoch takes from this set, at least one."""
        return max(1, round(Fraction(self.weight) * self.size))


@dataclass(frozen=True, slots=True)
class Picks:
    """The samples picked for a batch, in order, and how often each was picked before.

    That count is called the visit. Crops, flips and degradations are functions of it, of the key
    and of the seed. At weight 1 it is the number of the epoch.
    """

    set_index: Integers
    """Number of each sample's data set, [B]."""
    index: Integers
    """Number of each sample in that data set, [B]."""
    visit: Integers
    """How often each sample was picked before, [B]."""
    seed: int
    """Seed of the order."""

    def __getitem__(self, rows: slice) -> "Picks":
        """Return some of the samples."""
        return Picks(self.set_index[rows], self.index[rows], self.visit[rows], self.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How the samples of a micro-step are shared among the ranks."""

    ranks: int = 1
    """Processes that train together."""
    rank: int = 0
    """Number of this process, from 0."""
    micro_batch: int = 1
    """Samples that a rank takes in a micro-step."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise UsageError(f"rank {self.rank} of {self.ranks}: expected 0 to {self.ranks - 1}")
        if self.micro_batch < 1:
            raise UsageError(f"a micro batch of {self.micro_batch}: expected at least 1 sample")

    @property
    def stride(self) -> int:
        """Number of samples that all ranks together take in a micro-step."""
        return self.ranks * self.micro_batch

    def share(self, position: int) -> Integers:
        """Return this rank's positions of the micro-step that starts at ``position``."""
        start = position + self.rank * self.micro_batch
        return np.arange(start, start + self.micro_batch)


class Order:
    """The sequence of samples of one run.

    Attributes:
        digest: identity of the sequence but for the seed: the data's digest, sizes and weights.
        seed: seed of the shuffle.
        epoch: number of positions in an epoch.
    """

    def __init__(self, sets: Sequence[WeightedSet], *, digest: str, seed: int) -> None:
        self.sets = tuple(sets)
        self.seed = seed
        self.digest = digest_of([digest, [asdict(one) for one in self.sets]])
        taken = [one.taken for one in self.sets]
        self.epoch = sum(taken)
        self._starts = np.cumsum([0, *taken[:-1]])
        # A batch may reach into the next epoch, and with it into other passes over each set.
        self._shuffled = functools.lru_cache(maxsize=2 + 2 * len(taken))(self._shuffle)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("an order stays in the process that trains; workers receive picks")

    def at(self, positions: Integers) -> Picks:
        """Tell which samples stand at these positions, [B], of the endless sequence."""
        epochs, offsets = np.divmod(positions, self.epoch)
        slots = self._looked_up(("epoch",), epochs, offsets, self.epoch)
        which = np.searchsorted(self._starts, slots, side="right") - 1
        index, visit = np.empty_like(slots), np.empty_like(slots)
        for number, (here, start) in enumerate(zip(self.sets, self._starts, strict=True)):
            mine = which == number
            # The samples of one set, too, are an endless stream: shuffled passes over the set, of
            # which each epoch takes the next piece.
            stream = epochs[mine] * here.taken + slots[mine] - start
            visit[mine], place = np.divmod(stream, here.size)
            if here.taken % here.size:  # an epoch takes part of a pass: which part must vary
                place = self._looked_up(("pass", number), visit[mine], place, here.size)
            index[mine] = place
        return Picks(which, index, visit, self.seed)

    def _looked_up(
        self, name: tuple[str | int, ...], rounds: Integers, places: Integers, size: int
    ) -> Integers:
        """Return what stands at each place in the shuffle of its round (an epoch, or a pass)."""
        found = np.empty_like(places)
        for number in np.unique(rounds).tolist():
            here = rounds == number
            found[here] = self._shuffled(*name, number, size=size)[places[here]]
        return found

    def _shuffle(self, *name: str | int, size: int) -> Integers:
        """Return a permutation of ``size`` indices, a function of (digest, seed, name)."""
        key = hashlib.sha256(canonical_json([self.digest, self.seed, *name])).digest()
        philox = np.random.Philox(key=int.from_bytes(key[:16], "little"))
        return np.argsort(philox.random_raw(size), kind="stable")

    def state(self, position: int) -> dict[str, Any]:
        """Describe a position for a checkpoint: everything before it was consumed."""
        epoch, offset = divmod(position, self.epoch)
        return {"digest": self.digest, "seed": self.seed, "epoch": epoch, "offset": offset}

    def position(self, state: Mapping[str, Any]) -> int:
        """Return the position that a state describes.

        Raises:
            UsageError: it is a position in another order; the message says in what they differ.
        """
        mine = {"digest": self.digest, "seed": self.seed}
        changed = differences(mine, {name: state[name] for name in mine})
        if changed:
            raise UsageError(
                f"the saved position belongs to another order of samples ({'; '.join(changed)}); "
                "resume with the sets, weights and seed of that run, or start a new one in another "
                "--output. A set that was made again with other settings, even in the same folder, "
                "is another set"
            )
        return int(state["epoch"]) * self.epoch + int(state["offset"])

    def check(self, layout: Layout) -> None:
        """Refuse a layout that this data cannot serve.

        Raises:
            UsageError: a step would hold a sample of weight 1 twice.
        """
        if layout.stride > self.epoch:
            raise UsageError(
                f"{layout.ranks} ranks x {layout.micro_batch} samples = {layout.stride} samples "
                f"in a step, but an epoch has only {self.epoch}: take fewer ranks, smaller "
                "batches or more data"
            )


def sweep(
    size: int, layout: Layout, seed: int = 0, limit: int | None = None
) -> Iterator[tuple[Picks, int]]:
    """Yield this rank's share of one plain pass over a data set, as validation needs it.

    Every sample has visit 0, so its crop, flip and degradation never change. All ranks get equally
    many batches of equal size; where the samples run out, the first ones are repeated.

    Args:
        size: of the data set.
        layout: this rank among the others.
        seed: of the crops, flips and degradations.
        limit: how many samples to take at most, evenly spaced over the set; None takes all.

    Yields:
        Picks, and how many of them, from the front, are no repetition.
    """
    count = size if limit is None else min(size, limit)
    for position in range(0, count, layout.stride):
        share = layout.share(position)
        zeros = np.zeros_like(share)
        numbers = share % count * size // count
        yield Picks(zeros, numbers, zeros, seed), int((share < count).sum())


def keyed_integers(seed: int, key: str, visit: int, *ranges: int) -> list[int]:
    """Draw an integer below each of ``ranges``, a function of (seed, key, visit) alone."""
    name = canonical_json([seed, key, visit])
    words = hashlib.blake2b(name, digest_size=8 * len(ranges)).digest()
    return [
        int.from_bytes(words[8 * i : 8 * i + 8], "little") * n >> 64 for i, n in enumerate(ranges)
    ]


def scattered(seed: int, index: Integers, visit: Integers) -> Integers:
    """Return ``visit`` plus a random number of each sample's own, a function of (seed, index).

    Modulo K, successive visits of a sample go through all K choices, and different samples begin
    with different ones. The number comes from the finaliser of SplitMix64 (Steele, Lea, Flood
    2014).
    """
    key = np.uint64(seed % 2**64)
    word = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((word ^ (word >> np.uint64(31))) >> np.uint64(2)).astype(np.int64) + visit
