"""Latent sets -> batches of pairs: source E(posterior mean) and target E(HQ), for the flow.

    pairs = LatentPairs(Path("data/latents"))
    check_belongs(pairs.manifest, vae=vae_digest, predictor=predictor_digest)
    for batch, state in Loader(pairs, layout, LoaderConfig()): ...

A pair whose members are neighbours in the tar costs one ranged read, any other pair two; none reads
a byte more than the headers between them. The kernel copies straight into the batch. The headers
are compared with what the pair table promises, so a shard that is not the one it describes is
noticed; flipped bits inside a latent are not (`verify` compares the hashes).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

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
        self._keys = keys.dictionary
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
        keys = self._keys.take(pa.array(draw.index)).to_pylist()
        unreadable = self._fill(self._pairs(keys, rows, source, target))
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

    def _pairs(
        self, keys: Sequence[str], rows: Sequence[Sequence[int]], source: Tensor, target: Tensor
    ) -> "list[tuple[_Member, _Member]]":
        """Place both members of every row: in the tars, and in the batch."""
        size = self.latent.data_bytes
        lead = -self.latent.member_bytes % BLOCK + HEAD
        leads = memoryview(bytearray(2 * len(keys) * lead))
        sources, targets = (
            side.view(torch.uint8).view(-1).numpy().data for side in (source, target)
        )
        pairs = []
        for row, (key, draw, flip, gray, *place) in enumerate(zip(keys, *rows, strict=True)):
            shard, offset, target_shard, target_offset = place
            target_name = target_extension(draw, bool(flip), bool(gray))
            here, middle = slice(row * size, (row + 1) * size), (2 * row + 1) * lead
            first, second = leads[middle - lead : middle], leads[middle : middle + lead]
            pairs.append(
                (
                    _Member(f"{key}.source_{draw}.npy", shard, offset, first, sources[here]),
                    _Member(
                        f"{key}.{target_name}", target_shard, target_offset, second, targets[here]
                    ),
                )
            )
        return pairs

    def _fill(self, pairs: "Sequence[tuple[_Member, _Member]]") -> dict[int, str]:
        """Read all members; returns a message for each row that could not be read.

        Planned before and checked after, so that the loop is system calls and little else.
        """
        unreadable = {}
        planned = [_reads(*pair) for pair in pairs]
        for row, reads in enumerate(planned):
            try:
                for shard, offset, buffers in reads:
                    self.files.read(self._shards[shard], offset, buffers)
            except UnreadableRange as error:
                unreadable[row] = str(error)
        for row, pair in enumerate(pairs):
            for member in pair:
                if row not in unreadable and not member.is_there(self._header):
                    unreadable[row] = (
                        f"{self._shards[member.shard]}: something else is where the pair table has "
                        f"{member.name}; the two are of different sets, or the shard is damaged"
                    )
        return unreadable


class _Member(NamedTuple):
    """A latent in a tar, and the memory that it is read into."""

    name: str
    shard: int
    offset: int
    """Of the content, its `.npy` header."""
    lead: memoryview
    """Room for what stands between the member before and the data."""
    data: memoryview

    def is_there(self, header: bytes) -> bool:
        """Tell whether what was read is this member, by its tar header and its `.npy` header."""
        head = self.lead[-HEAD:]
        return names_member(head, self.name.encode()) and head[BLOCK:] == header


def _reads(source: _Member, target: _Member) -> list[tuple[int, int, list[memoryview]]]:
    """Plan the ranged reads of a pair, one if they are neighbours: shard, offset, buffers."""
    first, second = (source, target) if source.offset < target.offset else (target, source)
    start = first.offset - BLOCK
    end = first.offset + NPY_HEADER + first.data.nbytes
    if first.shard == second.shard and second.offset + NPY_HEADER == end + second.lead.nbytes:
        return [(first.shard, start, [first.lead[-HEAD:], first.data, second.lead, second.data])]
    return [
        (member.shard, member.offset - BLOCK, [member.lead[-HEAD:], member.data])
        for member in (first, second)
    ]


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
