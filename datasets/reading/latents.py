"""Batches of latent sets: pairs of source E(posterior mean) and target E(HQ), for the flow.

    pairs = LatentPairs(path_of("s3://faces/latents"))
    check_belongs(pairs.manifest, vae=vae_digest, predictor=predictor_digest)
    for batch, state in Loader(pairs, layout, LoaderConfig()): ...

A pair whose members are neighbours in the tar is one range, any other pair is two; nothing is read
but the latents and their headers, straight into the batch. All ranges of a batch are asked for
together, which a bucket answers at once and a disk one after the other. The headers are compared
with what the pair table says, so a shard that is not the one it describes is noticed.
Flipped bits inside a latent are noticed with ``checked=True``, by the CRC-32 of each member, which
costs 0.19 ms of a processor for a pair of 2 x 256 KiB; else only by `verify`.
"""

import functools
import shlex
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from datasets.latent_format import NPY_HEADER, LatentFormat, source_extension, target_extension
from datasets.latent_pairs import PAIRS
from datasets.reading.files import shards_of
from datasets.reading.finite import refuse_not_finite
from datasets.reading.loader import stand_ins
from datasets.reading.memory import Memory
from datasets.reading.order import Order, Picks, WeightedSet, scattered
from datasets.reading.ranges import Cache, UnreadableRange, flipped, names_member
from datasets.sets import EmptySplitError, PublishedSet, open_set
from datasets.shards import BLOCK, shard_sizes
from datasets.versions import versions
from infra.config import differences, from_dict
from infra.errors import UsageError, UserError
from infra.folders.pool import Request
from infra.paths import AnyPath

HEAD = BLOCK + NPY_HEADER  # bytes before the data of a member: headers of tar and .npy
SIDES = ("source", "target")
NO_CRC = -1  # of a latent that is not compared
# key, variant, then shard, offset and CRC-32 of the source, and the same of the target
_Pair = tuple[str, int, int, int, int, int, int, int]
# number of the shard, offset, CRC-32, name, memory for the data, memory for the headers
_Member = tuple[int, int, int, bytes, memoryview, memoryview]


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
        checked: whether the CRC-32 of every latent that is read is compared with the pair table's.

    Attributes:
        opened: the set.
        manifest: the manifest of the set.
        latent: how a latent is stored.

    Raises:
        UserError: no complete latent set, no pair of that split, or no checksums to compare.
            When samples are loaded: another set has taken the place of this one.
    """

    def __init__(
        self,
        folder: AnyPath,
        *,
        split: str = "train",
        cache: Cache | None = None,
        checked: bool = False,
    ) -> None:
        self.opened = opened = open_set(folder, "latent set")
        self.manifest, self.split = opened.manifest, split
        self.latent = from_dict(LatentFormat, self.manifest["latent"])
        self._header = self.latent.header()
        self._header_crc = zlib.crc32(self._header)
        self._dtype = getattr(torch, self.latent.dtype)
        self._padding = -self.latent.member_bytes % BLOCK
        self._apart = BLOCK + self.latent.member_bytes + self._padding  # of neighbouring members
        self._heads = HEAD + self._padding + HEAD  # bytes of a pair that are no data
        self.files = shards_of(opened, cache)
        table = _pairs(opened, split, checked=checked)
        self.digest = _split_digest(opened, split)
        keys = table["key"].combine_chunks().dictionary_encode()
        codes = keys.indices.to_numpy()
        self._first = np.flatnonzero(np.diff(codes, prepend=-1))
        self._count = np.diff(self._first, append=len(codes))
        self._keys: list[str] = keys.dictionary.to_pylist()
        self._shards = sorted(shard_sizes(self.manifest))
        self._table = _integers(table, self._shards)
        self.weighted_sets = (WeightedSet(size=len(self._first)),)

    @property
    def takes_processor(self) -> bool:
        """Whether to load takes so much of a processor that other processes had better do it."""
        return self.files.takes_processor

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

        A pair is checked as soon as it was read: where the shards are on a disk it is still in the
        processor's cache then.

        Args:
            pairs: the pairs to read.
            both: memory for sources and targets, [2, B, C, h, w].
        """
        pairs = list(pairs)
        members = list(self._members(pairs, both))
        requests = [self._requests(*of_pair) for of_pair in members]
        errors = self.files.read_many(list(chain.from_iterable(requests)))
        unreadable = {}
        for row, ((first, second), of_pair) in enumerate(zip(members, requests, strict=True)):
            wrong = list(filter(None, islice(errors, len(of_pair))))
            try:
                if wrong:
                    raise wrong[0]
                self._check(first)
                self._check(second)
                key, variant, shard = pairs[row][:3]
                refuse_not_finite(both[:, row], f"{self._shards[shard]}: {key} ({variant >> 2})")
            except UnreadableRange as error:
                unreadable[row] = str(error)
        if unreadable:
            self.opened.refuse_if_replaced()
        return unreadable

    def _members(
        self, pairs: Iterable[_Pair], both: npt.NDArray[Any]
    ) -> Iterator[tuple[_Member, _Member]]:
        """Yield the two members of each pair, in the order of their bytes, with memory for them."""
        size, half = both[0, 0].nbytes, both[0].nbytes
        data = both.reshape(-1).view(np.uint8).data
        heads = memoryview(bytearray(both.shape[1] * self._heads))
        for row, (key, variant, shard, at, crc, target_shard, target_at, target_crc) in enumerate(
            pairs
        ):
            name, (of_source, of_target) = key.encode(), _extensions(variant)
            start, head = row * size, row * self._heads
            source = shard, at, crc, name + of_source, data[start : start + size]
            start += half
            into = data[start : start + size]
            target = target_shard, target_at, target_crc, name + of_target, into
            first, second = (source, target) if at < target_at else (target, source)
            middle, end = head + HEAD, head + self._heads
            yield (*first, heads[head:middle]), (*second, heads[middle:end])

    def refuse_if_grown(self, state: Mapping[str, Any]) -> None:
        """Refuse to resume where the set has grown since, and say where its version of then is.

        Args:
            state: a position of `datasets.reading.order.Order`.

        Raises:
            UsageError: the position is in an earlier version of this set, which is kept.
        """
        for version in versions(self.opened):
            digest = _split_digest(version, self.split)
            order = Order(self.weighted_sets, digest=digest, seed=state["seed"])
            if order.digest == state["digest"]:
                raise UsageError(
                    f"{self.opened.folder} has grown since this run began, from "
                    f"{version.manifest['draws']} draws to {self.manifest['draws']}. What the run "
                    "was trained on is kept: resume with --latents "
                    f"{shlex.quote(str(version.folder))}, or start a new run on all draws, in "
                    "another --output"
                )

    def _requests(self, first: _Member, second: _Member) -> list[Request]:
        """Ask for two members with their headers, at once if they are neighbours."""
        shard, offset, _, _, data, head = first
        other_shard, other, _, _, other_data, gap = second
        if shard == other_shard and other - offset == self._apart:
            buffers = [head, data, gap, other_data]
            return [Request(self._shards[shard], offset - BLOCK, buffers)]
        return [
            Request(self._shards[shard], offset - BLOCK, [head, data]),
            Request(self._shards[other_shard], other - BLOCK, [gap[-HEAD:], other_data]),
        ]

    def _check(self, member: _Member) -> None:
        """Compare a member's headers, and its data if they are to be, with what they must be."""
        shard, _, crc32, name, data, memory = member
        head = bytes(memory)
        usual = head.startswith(name, -HEAD)  # a short name fills the first field, with zeros
        if not (usual or names_member(head[-HEAD:], name[:-1])) or not head.endswith(self._header):
            raise UnreadableRange(
                f"{self._shards[shard]}: something else is where the pair table has "
                f"{name[:-1].decode()}; they do not belong together, or it is damaged"
            )
        if crc32 != NO_CRC and zlib.crc32(data, self._header_crc) != crc32:
            raise flipped(self._shards[shard], name[:-1].decode())


@functools.lru_cache(maxsize=8)
def _starts(seed: int, images: int) -> npt.NDArray[np.int64]:
    """Return the number of every image's first draw, modulo K; computed once for all batches."""
    return scattered(seed, np.arange(images), np.zeros(images, np.int64))


@functools.cache
def _extensions(variant: int) -> tuple[bytes, bytes]:
    """Return the ends of the names of a pair's members: extension, and the zero byte after it."""
    draw, flip, gray = variant >> 2, bool(variant & 2), bool(variant & 1)
    target = target_extension(draw, flip, gray)
    return f".{source_extension(draw)}\0".encode(), f".{target}\0".encode()


def _split_digest(opened: PublishedSet, split: str) -> str:
    return f"{opened.digest}/{split}"


def _pairs(opened: PublishedSet, split: str, *, checked: bool) -> pa.Table:
    """Return the pairs of a split, with checksums where they are to be compared.

    Raises:
        UserError: there are none, or no checksums.
    """
    table = opened.table(PAIRS)
    for side in SIDES:
        opened.has_shards(PAIRS, pc.unique(table[f"{side}_shard"]).to_pylist())
    table = table.filter(pc.equal(table["split"], split))
    if not len(table):
        held_out = "; curate with --val-fraction 0.05 to hold images out, and encode that set"
        raise EmptySplitError(
            f"{opened.folder}: no pair of split {split!r} in {PAIRS}"
            f"{held_out if split == 'val' else ''}"
        )
    if checked and not all(_has_checksums(table, side) for side in SIDES):
        raise UserError(
            f"{opened.folder}: --check-data compares checksums, and an earlier version of the "
            "program made latents of this set without them: leave --check-data out, or encode into "
            "a new folder with --reuse, which copies these latents and adds checksums"
        )
    unused = [] if checked else [name for name in table.column_names if name.endswith("_crc32")]
    return table.drop_columns(unused)


def _has_checksums(table: pa.Table, side: str) -> bool:
    return f"{side}_crc32" in table.column_names and not table[f"{side}_crc32"].null_count


def _integers(table: pa.Table, shards: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the columns of the pair table that reading needs, a row for each pair.

    Columns: variant (draw x 4 + flip x 2 + gray); shard, offset and CRC-32 of the source, and the
    same of the target. A table without checksums gives `NO_CRC`.
    """
    draw, flip, gray = (
        table[name].to_numpy().astype(np.int64) for name in ("draw", "flip", "gray")
    )
    columns = [draw << 2 | flip << 1 | gray]
    unchecked = np.full(len(table), NO_CRC)
    for side in SIDES:
        shard = pc.index_in(table[f"{side}_shard"], value_set=pa.array(shards))
        is_checked = f"{side}_crc32" in table.column_names
        crc32 = table[f"{side}_crc32"].to_numpy() if is_checked else unchecked
        columns += [shard.to_numpy(), table[f"{side}_offset"].to_numpy(), crc32.astype(np.int64)]
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
