"""Latent sets -> batches of pairs: source E(posterior mean) and target E(HQ), for the flow.

    pairs = LatentPairs(Path("data/latents"))
    check_belongs(pairs.manifest, vae=vae_digest, predictor=predictor_digest)
    for batch, state in Loader(pairs, layout, LoaderConfig()): ...

A pair whose members are neighbours in the tar costs one ranged read, any other pair two; none reads
a byte more than the headers between them. The kernel copies straight into the batch. The headers
are compared with what the pair table promises, so a shard that is not the one it describes is
noticed; flipped bits inside a latent are not (`verify` compares the hashes).
"""

from collections.abc import Iterator, Sequence
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
from datasets.loading import Memory, published, stand_ins
from datasets.order import Draw, Part, scattered
from datasets.ranged import LocalFiles, Ranges, UnreadableRange, names_member
from datasets.shards import BLOCK
from infra.config import differences, from_dict
from infra.errors import UserError

HEAD = BLOCK + NPY_HEADER  # what stands before the data of a member
_Read = tuple[int, int, list[memoryview]]  # number of the shard, offset, where to


@dataclass(frozen=True, slots=True)
class LatentBatch:
    """Pairs for the flow."""

    source: Tensor
    """x_0 without its noise, [B, C, h, w]: float16 or float32 as stored; 8-bit as float32."""
    target: Tensor
    """x_1, as ``source``."""
    keys: Sequence[str]
    """Of the image samples."""
    draws: Sequence[int]
    """Which draw of each image; its parameters are in the tar's JSON."""
    flips: Sequence[bool]
    """Whether each pair is mirrored."""
    skipped: Sequence[str]
    """One message per unreadable pair, in whose place another of the batch stands."""

    def pin_memory(self) -> "LatentBatch":
        """Return the batch in page-locked memory."""
        return replace(self, source=self.source.pin_memory(), target=self.target.pin_memory())


class LatentPairs:
    """The pairs of one split of a latent set; an epoch visits every image once.

    The draw is a function of (seed, image, visit): K visits meet each of an image's K draws once.

    Args:
        folder: holds the manifest and the pair table, and the shards unless ``files`` brings them.
        split: `train` or `val`.
        files: where the bytes of the shards come from; None: ``folder``.

    Attributes:
        manifest: of the set.
        latent: how a latent is stored.

    Raises:
        UserError: no complete set, or no pair of that split.
    """

    def __init__(self, folder: Path, *, split: str = "train", files: Ranges | None = None) -> None:
        self.manifest, digest = published(folder)
        self.latent = from_dict(LatentFormat, self.manifest["latent"])
        sizes = {entry["name"]: entry["bytes"] for entry in self.manifest["shards"]}
        self._header = self.latent.header()
        self.files = LocalFiles(folder, sizes) if files is None else files
        table = pq.read_table(folder / PAIRS, filters=[("split", "=", split)])
        if not len(table):
            raise UserError(f"{folder}: no pair of split {split!r} in {PAIRS}")
        self.digest = f"{digest}/{split}"
        keys = table["key"].combine_chunks().dictionary_encode()
        codes = keys.indices.to_numpy()
        self._first = np.flatnonzero(np.diff(codes, prepend=-1))
        self._count = np.diff(self._first, append=len(codes))
        self._keys: list[str] = keys.dictionary.to_pylist()
        self._shards = sorted(sizes)
        self._table = _integers(table, self._shards)
        self.parts = (Part(size=len(self._first)),)

    def load(self, draw: Draw, memory: Memory) -> LatentBatch:
        """Load pairs; see `datasets.loading.Samples`."""
        count = len(draw.index)
        dtype = getattr(torch, self.latent.dtype)
        source, target = (memory.take((count, *self.latent.shape), dtype) for _ in range(2))
        chosen = scattered(draw.seed, draw.index, draw.visit) % self._count[draw.index]
        rows = self._table[:, self._first[draw.index] + chosen].tolist()
        keys = [self._keys[index] for index in draw.index.tolist()]
        leads = memory.take((count, 2, -self.latent.member_bytes % BLOCK + HEAD), torch.uint8)
        unreadable = self._read(_reads(rows[3:], leads.numpy(), source, target))
        names = self._names(keys, rows)
        for row, side in _strangers(leads[:, :, -HEAD:].numpy(), names, self._header):
            unreadable.setdefault(
                row,
                f"{self._shards[rows[3 + 2 * side][row]]}: something else is where the pair table "
                f"has {names[row][side].decode()}; they do not belong together, or it is damaged",
            )
        draws, flips = rows[:2]
        for row, other in stand_ins(unreadable, count).items():
            for column in (source, target, keys, draws, flips):
                column[row] = column[other]
        return LatentBatch(
            source=dequantised(source, self.latent, memory),
            target=dequantised(target, self.latent, memory),
            keys=keys,
            draws=draws,
            flips=[bool(flip) for flip in flips],
            skipped=list(unreadable.values()),
        )

    def _names(self, keys: Sequence[str], rows: Sequence[Sequence[int]]) -> list[list[bytes]]:
        """Name both members of every row of the pair table, as tars do."""
        return [
            [
                f"{key}.source_{draw}.npy".encode(),
                f"{key}.{target_extension(draw, bool(flip), bool(gray))}".encode(),
            ]
            for key, draw, flip, gray in zip(keys, *rows[:3], strict=True)
        ]

    def _read(self, planned: Sequence[Sequence[_Read]]) -> dict[int, str]:
        """Read all pairs; returns a message for each row that could not be read."""
        unreadable = {}
        for row, reads in enumerate(planned):
            try:
                for shard, offset, buffers in reads:
                    self.files.read(self._shards[shard], offset, buffers)
            except UnreadableRange as error:
                unreadable[row] = str(error)
        return unreadable


def _reads(
    places: Sequence[Sequence[int]], leads: npt.NDArray[np.uint8], source: Tensor, target: Tensor
) -> list[list[_Read]]:
    """Plan the ranged reads of every row, one where the members are neighbours.

    Args:
        places: shard and offset of the sources, shard and offset of the targets.
        leads: room for what stands between one member's data and the next's, [B, 2, bytes].
        source: sources of the batch.
        target: its targets.
    """
    size, lead = source[0].nbytes, leads.shape[2]
    sources, targets = (side.view(torch.uint8).view(-1).numpy().data for side in (source, target))
    flat = leads.reshape(-1).data
    planned: list[list[_Read]] = []
    for row, (shard, offset, target_shard, target_offset) in enumerate(zip(*places, strict=True)):
        here, start = slice(row * size, (row + 1) * size), 2 * row * lead
        first = shard, offset, flat[start : start + lead], sources[here]
        second = target_shard, target_offset, flat[start + lead : start + 2 * lead], targets[here]
        if target_offset < offset:
            first, second = second, first
        if first[0] == second[0] and second[1] - first[1] == size + lead:
            buffers = [first[2][-HEAD:], first[3], second[2], second[3]]
            planned.append([(first[0], first[1] - BLOCK, buffers)])
        else:
            planned.append([(m[0], m[1] - BLOCK, [m[2][-HEAD:], m[3]]) for m in (first, second)])
    return planned


def _strangers(
    heads: npt.NDArray[np.uint8], names: Sequence[Sequence[bytes]], header: bytes
) -> Iterator[tuple[int, int]]:
    """Yield (row, side) of members that are not there, by their tar and `.npy` headers [B, 2, 640].

    The common case is one comparison of the whole batch: what is there fills 100 bytes with a name.
    """
    expected = b"".join([name.ljust(100, b"\0") for pair in names for name in pair])
    headers = header * (2 * len(names))
    if heads[:, :, :100].tobytes() == expected and heads[:, :, BLOCK:].tobytes() == headers:
        return
    for row, pair in enumerate(names):
        for side, name in enumerate(pair):
            head = heads[row, side].tobytes()
            if head[BLOCK:] != header or not names_member(head, name):
                yield row, side


def _integers(table: pa.Table, shards: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return what reading needs of the pair table, one row of the array per column."""
    columns = [table["draw"], table["flip"], table["gray"]]
    for side in ("source", "target"):
        shard = pc.index_in(table[f"{side}_shard"], value_set=pa.array(shards))
        columns += [shard, table[f"{side}_offset"]]
    return np.stack([column.to_numpy().astype(np.int64) for column in columns])


def dequantised(stored: Tensor, latent: LatentFormat, memory: Memory) -> Tensor:
    """Stored latents [B, C, h, w] => latents; 8-bit to float32, the others as they are."""
    if latent.scale is None or latent.offset is None:
        return stored
    scale, offset = (torch.tensor(v).view(-1, 1, 1) for v in (latent.scale, latent.offset))
    values = memory.take(tuple(stored.shape), torch.float32)
    return torch.mul(stored, scale, out=values).add_(offset)


def check_belongs(manifest: dict[str, Any], **identity: Any) -> None:
    """Refuse a latent set that other weights or another degradation made.

    Args:
        manifest: of a latent set; its `identity` entry names what the latents depend on.
        identity: what the caller has, under the same names: ``vae="sha256…"``, ``predictor=…``.

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
