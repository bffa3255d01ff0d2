"""Standard normal numbers that are a function of a key: of what they are for and of whose they are.

The networks around the flow ask for numbers by purpose and know no seed; who calls them says where
the numbers come from, and nothing is drawn that is not asked for.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor


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
    """Of the batch's samples, [B]; who asks for one purpose twice gives two names."""

    def normal(self, shape: Sequence[int], purpose: Purpose) -> Tensor:
        """Draw N(0, 1), float32 [B, *shape], for each sample by (seed, its name)."""
        fields = []
        for name in self.names:
            hashed = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(hashed[:8], "big"))
            fields.append(torch.randn(tuple(shape), generator=generator))
        return torch.stack(fields)
