"""From a batch to the two ends of the flow: x_0 before its noise, x_1, and the condition.

Cached pairs bring both as latents. Pairs degraded online pass the frozen networks first, by the
steps of `models.restorer`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from datasets.reading.images import DegradedBatch
from datasets.reading.latents import LatentBatch
from models.noise import Purpose
from models.ranges import model_to_unit, to_uint8, uint8_to_unit
from models.restorer import Restorer
from trainers.loop.noise import Noise


class FlowBatch(NamedTuple):
    """Both ends of a batch of the flow; all float32 [B, C, h, w]."""

    source: Tensor
    """x_0 before its noise; of the source ``noise``, that noise."""
    target: Tensor
    """x_1."""
    condition: Tensor | None
    """What a conditional flow sees at every t."""


def from_latents(
    restorer: Restorer, batch: LatentBatch, noise: Noise, *, is_regressed: bool
) -> FlowBatch:
    """Take cached pairs, as they are stored, to float32 on the device.

    Args:
        restorer: the networks, of which a regressor may be needed.
        batch: the pairs.
        noise: of the batch.
        is_regressed: whether the stored sources are g(E(posterior mean)) already.
    """
    encoding, target = (
        side.to(noise.device, torch.float32, non_blocking=True)
        for side in (batch.source, batch.target)
    )
    source = encoding if is_regressed else restorer.source(encoding, noise)
    return FlowBatch(source, target, restorer.condition(encoding))


def from_images(restorer: Restorer, batch: DegradedBatch, noise: Noise) -> FlowBatch:
    """Compute pairs from images in [-1, 1]."""
    lq, hq = (side.to(noise.device, non_blocking=True) for side in (batch.lq, batch.hq))
    start, hq = restorer.posterior_mean(lq_levels(lq)), model_to_unit(hq)
    encoding = restorer.encode(start, noise, Purpose.SOURCE_POSTERIOR)
    target = restorer.encode(hq, noise, Purpose.TARGET_POSTERIOR)
    return FlowBatch(restorer.source(encoding, noise), target, restorer.condition(encoding))


def lq_levels(lq: Tensor) -> Tensor:
    """LQ in [-1, 1] => [0, 1], each value the 8-bit level that it was, to the last bit.

    So the predictor sees here what it sees in pipelines.encode, where LQ never left [0, 1].
    """
    return uint8_to_unit(to_uint8(lq))
