"""Q-Align of 7 billion parameters with random weights: images a second. Its scores are noise."""

import functools
import os
from typing import Any

import numpy as np
import torch

from infra.ahead import map_ahead
from tests.benchmarks.gpu.device import Device
from tests.benchmarks.gpu.networks import FULL, Sizes, pictures
from tests.benchmarks.gpu.rows import Found, Row

WEIGHTS_GB = 16.4
THREADS = min(16, os.cpu_count() or 1)  # that prepare images, as pipelines.jobs.scorers has them


def rows(sizes: Sizes) -> list[Row]:
    """Return a row for each batch size; each builds the network on the device anew."""
    return [
        Row(f"qalign/batch-{batch}", 10.0, functools.partial(_rates, sizes, batch), WEIGHTS_GB + 8)
        for batch in sizes.qalign_batches
    ]


def _rates(sizes: Sizes, batch: int, device: Device) -> Found:
    """Measure the network alone, without what it leaves out, for two tasks, and with the host."""
    from models.qalign.network import QAlignConfig, flops_per_image
    from models.qalign.prompts import PROMPTS
    from models.qalign.scorer import QAlign
    from tests.benchmarks.qalign import ALL, NONE, SMALL, random_network

    config = QAlignConfig() if sizes is FULL else SMALL
    scorer = QAlign(random_network(config, str(device.torch), torch.bfloat16), batch_size=batch)
    levels = _levels(batch, config.vision.image_size, config.vision.image_size)
    given = torch.from_numpy(np.stack(levels)).to(device.torch)
    flops = batch * flops_per_image(config, [PROMPTS["quality"]], ALL)

    def rate(*prompts: str) -> dict[str, Any]:
        return device.timed(lambda: scorer.logits(given, prompts))

    found = device.rated(rate("quality"), flops, batch)
    found["both_tasks_ms"] = rate("quality", "aesthetics")["ms"]
    large = _levels(4 * batch, *sizes.photograph)
    preparing = functools.partial(map_ahead, threads=THREADS, ahead=2 * batch)
    hosted = device.timed(lambda: list(scorer.stream(large, ("quality",), preparing)))
    scorer.shortcuts = NONE
    return {
        **found,
        "as_shipped_ms": rate("quality")["ms"],
        "photograph": sizes.photograph,
        "photographs_per_s": 4 * batch / hosted["ms"] * 1e3,
        "host_threads": THREADS,
    }


def _levels(count: int, height: int, width: int) -> list[Any]:
    """Draw pictures, RGB uint8 [height, width, 3]."""
    drawn = pictures(1, max(height, width))[0, :, :height, :width].mul(255).to(torch.uint8)
    return [drawn.roll(number, 2).permute(1, 2, 0).contiguous().numpy() for number in range(count)]
