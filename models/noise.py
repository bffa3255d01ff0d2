"""Random numbers that are a function of a key: of a seed, what they are for, and whose they are.

The networks around the flow ask for numbers by purpose and know no seed; who calls them says where
the numbers come from, and nothing is drawn that is not asked for.

A key is hashed as a whole, so that no two keys are one, however large a seed is. PyTorch's
generator on the CPU would keep 32 bits of the hash, under which two of 100,000 samples more likely
share their numbers than not: there the numbers are NumPy's, of a Philox generator under 128 bits.
A GPU's generator in PyTorch is a Philox generator too, under 64 bits.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Key = tuple[int | str, ...]


class Purpose(IntEnum):
    """What numbers are for; each has a sequence of its own."""

    TIME = 0
    SOURCE_NOISE = 1
    SOURCE_POSTERIOR = 2
    TARGET_POSTERIOR = 3


class BatchNoise(Protocol):
    """The random numbers of one batch, by purpose; who draws them knows their key."""

    def normal(self, shape: Sequence[int], purpose: Purpose) -> Tensor:
        """Draw N(0, 1), float32 [B, *shape]; the same whenever it is asked for."""


@dataclass(frozen=True, slots=True)
class NamedNoise:
    """The numbers of samples with names; on the CPU, so that every device has the same."""

    seed: int
    names: Sequence[str]
    """Of the batch's samples, [B]."""

    def normal(self, shape: Sequence[int], purpose: Purpose) -> Tensor:
        """Draw N(0, 1), float32 [B, *shape], for each sample by (seed, purpose, its name)."""
        noise = torch.empty(len(self.names), *shape)
        for row, name in zip(noise, self.names, strict=True):
            fill_normal(row, (self.seed, int(purpose), name))
        return noise


def fill_normal(numbers: Tensor, key: Key) -> None:
    """Fill a contiguous float32 tensor with N(0, 1), drawn on its device.

    Args:
        numbers: what to fill; the kind of its device has a say in the values.
        key: what else has; all of it.
    """
    if numbers.device.type == "cpu":
        keyed_generator(key).standard_normal(out=numbers.numpy(), dtype=np.float32)
    else:
        generator = torch.Generator(numbers.device).manual_seed(_bits(key, 64))
        numbers.normal_(generator=generator)


def keyed_generator(key: Key) -> np.random.Generator:
    """Return a generator at the beginning of the sequence that belongs to a key."""
    return np.random.Generator(np.random.Philox(key=_bits(key, 128)))


def _bits(key: Key, count: int) -> int:
    """Hash a key to an integer of ``count`` bits."""
    return int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[: count // 8], "big")
