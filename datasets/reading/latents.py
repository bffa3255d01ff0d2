"""Batches of latent sets: pairs of source E(posterior mean) and target E(HQ), for the flow.

    pairs = LatentPairs(Path("data/latents"))
    check_belongs(pairs.manifest, vae=vae_digest, predictor=predictor_digest)
    for batch, state in Loader(pairs, layout, LoaderConfig()): ...

A pair whose members are neighbours in the tar is read at once, any other pair in two reads; nothing
is read but the latents and their headers. The kernel copies straight into the batch. The headers
are compared with what the pair table says, so a shard that is not the one it describes is noticed;
flipped bits inside a latent are not (`verify` compares the hashes).
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from datasets.latent_format import NPY_HEADER, LatentFormat, target_extension
from datasets.latent_pairs import PAIRS
from datasets.reading.finite import refuse_not_finite
from datasets.reading.loader import stand_ins
from datasets.reading.memory import Memory
from datasets.reading.order import Picks, WeightedSet, scattered
from datasets.reading.ranges import Cache, UnreadableRange, names_member, shards_of
from datasets.shards import BLOCK, published, shard_sizes
from infra.config import differences, from_dict
from infra.errors import UserError

HEAD = BLOCK + NPY_HEADER  # bytes before the data of a member: headers of tar and .npy
# key, variant, shard and offset of the source, shard and offset of the target
_Pair = tuple[str, int, int, int, int, int]
# number of the shard, offset, name, memory to read into
_Member = tuple[int, int, bytes, memoryview]


@dataclass(frozen=True, slots=True)
class LatentBatch:
    """Pairs for the flow."""

    source: Tensor
    """x_0 before noise is added, [B, C, h, w]: float16 or float32 as stored, float32 for 8 bits."""
    target: Tensor
    """x_1, in shape and type as ``source``."""
    keys: Sequence[str]
    """Keys of the images."""
    draws: Sequence[int]
    """Number of each pair's draw, whose parameters are in the tar's JSON."""
    flips: Sequence[bool]
    """Whether each pair is mirrored."""
    skipped: Sequence[str]
    """One message for each unreadable pair that was replaced by another of the batch."""

    def pin_memory(self) -> "LatentBatch":
        """Return the batch in page-locked memory."""
        return replace(self, source=self.source.pin_memory(), target=self.target.pin_memory())


class LatentPairs:
    """The pairs of one split of a latent set; an epoch visits every image once.

    The draw is a function of (seed, image, visit); K visits go once through an image's K draws.

    Args:
        folder: holds the manifest, the pair table and the shards.
        split: `train` or `val`.
        cache: keeps what is read of the shards, where the folder is on slow storage.

    Attributes:
        manifest: the manifest of the set.
        latent: how a latent is stored.

    Raises:
        UserError: no complete set, or no pair of that split.
    """

    def __init__(self, folder: Path, *, split: str = "train", cache: Cache | None = None) -> None:
        self.manifest, digest = published(folder)
        self.latent = from_dict(LatentFormat, self.manifest["latent"])
        self._header = self.latent.header()
        self._dtype = getattr(torch, self.latent.dtype)
        self._padding = -self.latent.member_bytes % BLOCK
        self._apart = BLOCK + self.latent.member_bytes + self._padding  # of neighbouring members
        self.files = shards_of(folder, self.manifest, digest, cache)
        table = pq.read_table(folder / PAIRS, filters=[("split", "=", split)])
        if not len(table):
            raise UserError(f"{folder}: no pair of split {split!r} in {PAIRS}")
        self.digest = f"{digest}/{split}"
        keys = table["key"].combine_chunks().dictionary_encode()
        codes = keys.indices.to_numpy()
        self._first = np.flatnonzero(np.diff(codes, prepend=-1))
        self._count = np.diff(self._first, append=len(codes))
        self._keys: list[str] = keys.dictionary.to_pylist()
        self._shards = sorted(shard_sizes(self.manifest))
        self._table = _integers(table, self._shards)
        self.weighted_sets = (WeightedSet(size=len(self._first)),)

    def load(self, picks: Picks, memory: Memory) -> LatentBatch:
        """Load pairs; see `datasets.reading.loader.Samples`."""
        turn = _starts(picks.seed, len(self._first))[picks.index] + picks.visit
        rows = self._first[picks.index] + turn % self._count[picks.index]
        variants, *places = self._table[rows].T.tolist()
        keys = [self._keys[index] for index in picks.index.tolist()]
        both = memory.take((2, len(keys), *self.latent.shape), self._dtype)
        unreadable = self._read(zip(keys, variants, *places, strict=True), both.numpy())
        for row, other in stand_ins(unreadable, len(keys)).items():
            both[:, row] = both[:, other]
            keys[row], variants[row] = keys[other], variants[other]
        source, target = dequantised(both, self.latent, memory).unbind()
        return LatentBatch(
            source=source,
            target=target,
            keys=keys,
            draws=[variant >> 2 for variant in variants],
            flips=[bool(variant & 2) for variant in variants],
            skipped=list(unreadable.values()),
        )

    def _read(self, pairs: Iterable[_Pair], both: npt.NDArray[Any]) -> dict[int, str]:
        """Read pairs; returns a message for each row that could not be read.

        All headers are read into the same two buffers and compared at once, while they are in the
        processor's cache.

        Args:
            pairs: the pairs to read.
            both: memory for sources and targets, [2, B, C, h, w].
        """
        size, half = both[0, 0].nbytes, both[0].nbytes
        data = both.reshape(-1).view(np.uint8).data
        heads = bytearray(HEAD), bytearray(self._padding + HEAD)
        head, gap = memoryview(heads[0]), memoryview(heads[1])
        unreadable = {}
        for row, (key, variant, shard, offset, target_shard, target_offset) in enumerate(pairs):
            name, (of_source, of_target) = key.encode(), _extensions(variant)
            start = row * size
            source = shard, offset, name + of_source, data[start : start + size]
            start += half
            target = target_shard, target_offset, name + of_target, data[start : start + size]
            first, second = (source, target) if offset < target_offset else (target, source)
            try:
                self._fill(first, second, head, gap)
                self._check(first, heads[0])
                self._check(second, heads[1])
                refuse_not_finite(both[:, row], f"{self._shards[shard]}: {key} ({variant >> 2})")
            except UnreadableRange as error:
                unreadable[row] = str(error)
        return unreadable

    def _fill(self, first: _Member, second: _Member, head: memoryview, gap: memoryview) -> None:
        """Read two members with their headers, at once if they are neighbours."""
        shard, offset, _, data = first
        other_shard, other, _, other_data = second
        if shard == other_shard and other - offset == self._apart:
            self.files.read(self._shards[shard], offset - BLOCK, [head, data, gap, other_data])
        else:
            self.files.read(self._shards[shard], offset - BLOCK, [head, data])
            self.files.read(self._shards[other_shard], other - BLOCK, [gap[-HEAD:], other_data])

    def _check(self, member: _Member, head: bytearray) -> None:
        """Compare the headers that were before a member's data with those that it must have."""
        shard, _, name, _ = member
        usual = head.startswith(name, -HEAD)  # a short name fills the first field, with zeros
        if not (usual or names_member(head[-HEAD:], name[:-1])) or not head.endswith(self._header):
            raise UnreadableRange(
                f"{self._shards[shard]}: something else is where the pair table has "
                f"{name[:-1].decode()}; they do not belong together, or it is damaged"
            )


@functools.lru_cache(maxsize=8)
def _starts(seed: int, images: int) -> npt.NDArray[np.int64]:
    """Return the number of every image's first draw, modulo K; computed once for all batches."""
    return scattered(seed, np.arange(images), np.zeros(images, np.int64))


@functools.cache
def _extensions(variant: int) -> tuple[bytes, bytes]:
    """Return the ends of the names of a pair's members: extension, and the zero byte after it."""
    draw, flip, gray = variant >> 2, bool(variant & 2), bool(variant & 1)
    target = target_extension(draw, flip, gray)
    return f".source_{draw}.npy\0".encode(), f".{target}\0".encode()


def _integers(table: pa.Table, shards: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the columns of the pair table that reading needs, a row for each pair.

    Columns: variant (draw x 4 + flip x 2 + gray), shard and offset of the source, of the target.
    """
    draw, flip, gray = (
        table[name].to_numpy().astype(np.int64) for name in ("draw", "flip", "gray")
    )
    columns = [draw << 2 | flip << 1 | gray]
    for side in ("source", "target"):
        shard = pc.index_in(table[f"{side}_shard"], value_set=pa.array(shards))
        columns += [shard.to_numpy(), table[f"{side}_offset"].to_numpy()]
    return np.stack(columns, axis=1)


def dequantised(stored: Tensor, latent: LatentFormat, memory: Memory) -> Tensor:
    """Stored latents [..., C, h, w] => latents; 8-bit to float32, the others as they are."""
    if latent.scale is None or latent.offset is None:
        return stored
    scale, offset = (torch.tensor(v).view(-1, 1, 1) for v in (latent.scale, latent.offset))
    values = memory.take(tuple(stored.shape), torch.float32)
    return torch.mul(stored, scale, out=values).add_(offset)


def check_belongs(manifest: dict[str, Any], **identity: Any) -> None:
    """Refuse a latent set that other weights or another degradation made.

    Args:
        manifest: of a latent set; its `identity` entry says what the latents depend on.
        identity: what the caller uses, under the same names: ``vae="sha256…"``, ``predictor=…``.

    Raises:
        UserError: something differs; the message names it, with both values.
    """
    recorded = manifest.get("identity", {})
    changed = differences(identity, {name: recorded.get(name) for name in identity})
    if changed:
        raise UserError(
            f"these latents do not belong to this run ({'; '.join(changed)}): the first is what "
            "made them, the second what the run has; encode again, or use what made them"
        )
