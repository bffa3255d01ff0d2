"""A Q-Align checkpoint: checked for completeness, identified, and loaded straight to its device.

The network is built on the meta device; each tensor goes from the mapped file to the target device
and dtype. There is never a second copy of the model.
"""

import dataclasses
import hashlib
import json
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from models.qalign.files import BadCheckpoint, Shard, locate, weight_files
from models.qalign.images import check_preprocessing
from models.qalign.network import QAlignConfig, QAlignNetwork
from models.qalign.prompts import PROMPTS, check_vocabulary
from models.qalign.vision import position_tables

# Left in the published files by an old transformers; LLaMA computes them.
STALE = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
# Constants that a checkpoint may leave out. Where it has them, its own rounding of them counts.
POSITIONS = re.compile(r"model\.visual_abstractor\.(.+\.)([qk]_pos_embed)")
BLOCK = 4096  # bytes that the digest reads at the start, the middle and the end of a tensor


class NotEnoughMemory(MemoryError):  # noqa: N818  (reads as what it says)
    """The device cannot hold the model; raised before anything is loaded."""


@dataclass(frozen=True)
class Checkpoint:
    """A Q-Align checkpoint on disk, mapped and known to be complete."""

    folder: Path
    config: QAlignConfig
    shards: tuple[Shard, ...]

    @classmethod
    def open(cls, source: str | Path, revision: str | None = None) -> Self:
        """Find a local folder or hub id; check configuration, vocabulary, names and shapes.

        Raises:
            BadCheckpoint: what is missing, unexpected, damaged or of another model, listed.
            WrongTokenizer: tokenizer.model is not LLaMA-2's.
        """
        folder = locate(source, revision)
        preprocessing, vocabulary = folder / "preprocessor_config.json", folder / "tokenizer.model"
        try:
            config = QAlignConfig.from_json(json.loads((folder / "config.json").read_text()))
            if preprocessing.exists():
                check_preprocessing(preprocessing, config.vision.image_size)
        except (ValueError, TypeError, AttributeError) as error:
            raise BadCheckpoint(f"{folder}: {error}") from error
        if vocabulary.exists():
            check_vocabulary(vocabulary)
        checkpoint = cls(folder, config, tuple(Shard.open(path) for path in weight_files(folder)))
        checkpoint.check()
        return checkpoint

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Merge the shards' mapped tensors by name, sorted, without the stale ones."""
        merged = {name: value for shard in self.shards for name, value in shard.tensors.items()}
        return {name: merged[name] for name in sorted(merged) if not STALE.fullmatch(name)}

    def check(self) -> None:
        """Compare names and shapes with the network's, and the vocabulary's size with the prompts.

        Raises:
            BadCheckpoint: the missing, the unexpected and the misshapen, all listed.
        """
        largest = max(max(*prompt.before, *prompt.after) for prompt in PROMPTS.values())
        if self.config.language.vocab_size <= largest:
            raise BadCheckpoint(
                f"{self.folder}: vocab_size={self.config.language.vocab_size}, but the prompts use "
                f"token {largest} of LLaMA-2's 32000"
            )
        expected = {name: [*x.shape] for name, x in build(self.config).state_dict().items()}
        found = {name: [*x.shape] for name, x in self.tensors.items()}
        absent = expected.keys() - found.keys()
        problems = {
            "missing": [name for name in sorted(absent) if not POSITIONS.fullmatch(name)],
            "unexpected": sorted(found.keys() - expected.keys()),
            "of another shape than config.json says": [
                f"{name} {found[name]}, not {expected[name]}"
                for name in sorted(found.keys() & expected.keys())
                if found[name] != expected[name]
            ],
        }
        listed = [f"{len(x)} {what}: {', '.join(x)}" for what, x in problems.items() if x]
        if listed:
            raise BadCheckpoint(f"{self.folder}: {'; '.join(listed)}")

    @cached_property
    def digest(self) -> str:
        """Identify the weights; SHA-256 in hex.

        Hashed are the network's configuration and, for every tensor by name, its dtype, shape and
        three blocks of 4 KiB (start, middle, end). So 10 MB of 16 GB are read, .bin and safetensors
        of the same weights agree, and trained weights differ. It is no seal against tampering.
        """
        sha256 = hashlib.sha256(json.dumps(dataclasses.asdict(self.config)).encode())
        for name, tensor in self.tensors.items():
            data = tensor.reshape(-1).view(torch.uint8).numpy()
            sha256.update(f"{name} {tensor.dtype} {[*tensor.shape]}\n".encode())
            for start in (0, len(data) // 2, max(0, len(data) - BLOCK)):
                sha256.update(data[start : start + BLOCK].tobytes())
        return sha256.hexdigest()

    def load(self, device: torch.device, dtype: torch.dtype, batch_size: int) -> QAlignNetwork:
        """Build the network on ``device`` in ``dtype``, one tensor at a time.

        Raises:
            NotEnoughMemory: the device has less free than weights and one batch need.
            BadCheckpoint: a tensor's bytes do not match their checksum.
        """
        network = build(self.config)
        require_memory(network, device, dtype, batch_size)
        for shard in self.shards:
            state = {}
            for name, tensor in shard.tensors.items():
                if not STALE.fullmatch(name):
                    shard.check(name)
                    state[name] = tensor.to(device, dtype, copy=True)
            network.load_state_dict(state, strict=False, assign=True)
        self._compute_absent_positions(network, device, dtype)
        return network.requires_grad_(False).eval()

    def _compute_absent_positions(
        self, network: QAlignNetwork, device: torch.device, dtype: torch.dtype
    ) -> None:
        absent = [x for x in map(POSITIONS.fullmatch, network.state_dict()) if x]
        absent = [match for match in absent if match[0] not in self.tensors]
        if absent:
            warnings.warn(
                f"{self.folder}: computing {len(absent)} position tables that are not in it; the "
                "published checkpoint has them, rounded, and its scores depend on that",
                stacklevel=3,
            )
            tables = position_tables(self.config.abstractor)
            state = {match[0]: tables[match[2]].to(device, dtype) for match in absent}
            network.load_state_dict(state, strict=False, assign=True)


def build(config: QAlignConfig) -> QAlignNetwork:
    """Build the network without memory for its weights, on the meta device."""
    with torch.device("meta"):
        return QAlignNetwork(config)


def bytes_needed(network: QAlignNetwork, dtype: torch.dtype, batch_size: int) -> tuple[int, int]:
    """Count the bytes of the weights, and estimate those of one batch.

    The estimate is the widest moment of the vision tower: of every token four copies of the MLP's
    inner layer (quick_gelu makes three) and two of the stream.
    """
    weights = sum(value.numel() for value in network.state_dict().values())
    vision = network.config.vision
    per_token = 4 * vision.intermediate_size + 2 * vision.hidden_size
    return weights * dtype.itemsize, batch_size * vision.tokens * per_token * dtype.itemsize


def free_memory(device: torch.device) -> int | None:
    """Measure the bytes a device can still give; None where there is no way to know."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        return None
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")  # of this container
    if limit.exists() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()))
    return available


def require_memory(
    network: QAlignNetwork, device: torch.device, dtype: torch.dtype, batch_size: int
) -> None:
    """Raise NotEnoughMemory, saying how much is needed, if ``device`` cannot hold the network."""
    weights, batch = bytes_needed(network, dtype, batch_size)
    free = free_memory(device)
    if free is not None and free < weights + batch:
        raise NotEnoughMemory(
            f"Q-Align in {dtype} needs {weights / 1e9:.1f} GB for its weights and about "
            f"{batch / 1e9:.1f} GB for a batch of {batch_size}; {device} has {free / 1e9:.1f} GB "
            "free. Use a larger device, a 16-bit dtype, or a smaller batch"
        )
