"""The random numbers of a step, each a function of (seed, step, position in the global batch).

They are therefore the same on one rank or eight, with or without accumulation, and after a resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.noise import Key, Purpose, fill_normal, keyed_generator
from models.rectified_flow import TimeDistribution, sample_t
from models.transfer import sent


@dataclass(frozen=True, slots=True)
class Noise:
    """The random numbers of one micro-batch."""

    seed: int
    step: int
    positions: Sequence[int]
    """Positions of its samples in the global batch, [B]."""
    total: int
    """Number of samples in the global batch."""
    device: torch.device

    def normal(self, shape: Sequence[int], purpose: Purpose) -> Tensor:
        """Draw N(0, 1), float32 [B, *shape], by the device's own kind of generator."""
        noise = torch.empty(len(self.positions), *shape, device=self.device)
        for row, position in zip(noise, self.positions, strict=True):
            fill_normal(row, self._key(purpose, position))
        return noise

    def times(self, distribution: TimeDistribution = "stratified") -> Tensor:
        """Draw t, float32 [B]: this micro-batch's share of the global batch's times."""
        generator = keyed_generator(self._key(Purpose.TIME, self.total))
        times = sample_t(self.total, generator, distribution=distribution)
        return sent(times[list(self.positions)], self.device)

    def _key(self, purpose: Purpose, position: int) -> Key:
        return (self.seed, self.step, int(purpose), position)
