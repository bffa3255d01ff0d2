"""Q-Align's cost: `python -m tests.benchmarks.qalign`; with a GPU of 24 GB also `--full`.

On the CPU a small model with random weights (OMP_NUM_THREADS=1): what each shortcut saves in
counted operations at 7B and in time at small size, what batching gives, what loading costs.
`--full` builds the 7B model with random weights on CUDA, in bfloat16, and measures images per
second, memory and the share of the measured matrix-product ceiling. It was never run on a GPU;
`--try-full` runs its code on the CPU, small. Scores of random weights are noise.
"""

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from infra.ahead import map_ahead
from models.qalign.checkpoint import Checkpoint, build, bytes_needed
from models.qalign.language import LanguageConfig
from models.qalign.network import QAlignConfig, QAlignNetwork, Shortcuts, flops_per_image
from models.qalign.prompts import PROMPTS
from models.qalign.scorer import QAlign
from models.qalign.vision import AbstractorConfig, VisionConfig
from tests.benchmarks.harness import paired, save
from tests.support.qalign_checkpoint import TINY, random_state, write_checkpoint

THREADS = min(16, os.cpu_count() or 1)  # that prepare images, as pipelines.jobs.scorers has them
NONE = Shortcuts(shared_prefix=False, last_row=False, five_logits=False)
ALL = Shortcuts()
STEPS = {  # each adds a shortcut to those before it
    "as_shipped": NONE,
    "five_logits": dataclasses.replace(NONE, five_logits=True),
    "last_row": dataclasses.replace(ALL, shared_prefix=False),
    "shared_prefix": ALL,
}
# 7B's proportions between the parts, at a size that one core runs in a tenth of a second.
SMALL = QAlignConfig(
    vision=VisionConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        image_size=224,
    ),
    abstractor=AbstractorConfig(
        hidden_size=64, encoder_hidden_size=64, intermediate_size=176, num_hidden_layers=2,
        num_attention_heads=4, grid_size=16,
    ),
    language=LanguageConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8,
    ),
)  # fmt: skip


def random_network(config: QAlignConfig, device: str, dtype: torch.dtype) -> QAlignNetwork:
    """Build a network with random weights, on its device from the start."""
    network = build(config).to(dtype).to_empty(device=device).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("norm.weight"):
            nn.init.ones_(value)
        else:
            nn.init.normal_(value, std=0.02, generator=generator)
    return network


def counted_flops() -> dict[str, Any]:
    """Count GFLOP per image at 7B: as shipped, one shortcut more at a time, and both tasks."""
    config, quality, aesthetics = QAlignConfig(), PROMPTS["quality"], PROMPTS["aesthetics"]

    def gflop(prompts: list[Any], shortcuts: Shortcuts) -> float:
        return round(flops_per_image(config, prompts, shortcuts) / 1e9, 1)

    shipped = [gflop([prompt], NONE) for prompt in (quality, aesthetics)]
    return {
        "quality": {name: gflop([quality], shortcuts) for name, shortcuts in STEPS.items()},
        "both_tasks_as_shipped": round(sum(shipped), 1),
        "both_tasks_one_vision_pass": gflop([quality, aesthetics], ALL),
    }


def images(count: int, height: int, width: int) -> list[Any]:
    """Noise images, uint8 [height, width, 3]."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def cpu() -> dict[str, Any]:
    """Time the small model: shortcuts against none, batches against single images."""
    torch.set_num_threads(1)
    network, batch = random_network(SMALL, "cpu", torch.float32), images(16, 224, 224)

    def score(batch_size: int, shortcuts: Shortcuts) -> Callable[[], object]:
        scorer = QAlign(network, batch_size=batch_size)
        scorer.shortcuts = shortcuts
        return lambda: scorer.score(batch)

    def counted(shortcuts: Shortcuts) -> int:
        return flops_per_image(SMALL, [PROMPTS["quality"]], shortcuts)

    return {
        "images_per_call": len(batch),
        "time_over_the_step_before": {
            name: paired(score(8, after), score(8, before))
            | {"counted_ratio": counted(after) / counted(before)}
            for (_, before), (name, after) in itertools.pairwise(STEPS.items())
        },
        "time_of_batch_over_single": {
            str(size): paired(score(size, ALL), score(1, ALL)) for size in (2, 4, 8, 16)
        },
    }


@contextmanager
def peak_anonymous() -> Iterator[dict[str, int]]:
    """Sample this process's memory without mapped files; gives {"bytes": peak increase}."""
    result, stop = {"bytes": 0}, threading.Event()

    def now() -> int:
        fields = dict(x.split(":") for x in Path("/proc/self/status").read_text().splitlines())
        return int(fields["RssAnon"].split()[0]) * 1024

    def watch() -> None:
        while not stop.wait(0.001):
            result["bytes"] = max(result["bytes"], now() - start)

    start = now()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield result
    finally:
        stop.set()
        thread.join()


def load_once(folder: str) -> dict[str, float]:
    """Load a checkpoint on the CPU in this fresh process; memory in multiples of the weights."""
    start = time.perf_counter()
    checkpoint = Checkpoint.open(folder)
    opened = time.perf_counter()
    assert checkpoint.digest
    digested = time.perf_counter()
    with peak_anonymous() as peak:
        network = checkpoint.load(torch.device("cpu"), torch.bfloat16, batch_size=1)
    loaded = time.perf_counter()
    weights = bytes_needed(network, torch.bfloat16, 1)[0]
    return {
        "weights_bytes": weights,
        "peak_over_weights": peak["bytes"] / weights,
        "open_and_check_s": opened - start,
        "digest_s": digested - opened,
        "load_s": loaded - digested,
    }


def loading() -> dict[str, Any]:
    """Load half a gigabyte of bfloat16, both containers, each in a process of its own."""
    config = TINY | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 10}
    with tempfile.TemporaryDirectory() as folder:
        state = random_state(config)
        for kind in ("bin", "safetensors"):
            write_checkpoint(Path(folder, kind), state, config, kind)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            kinds = [Path(folder, kind) for kind in ("bin", "safetensors")]
            pool.map(load_once, map(str, kinds))  # the files are in the page cache after this
            return {kind.name: pool.apply(load_once, (str(kind),)) for kind in kinds}


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def ceiling(device: str, dtype: torch.dtype, side: int) -> float:
    """Measure the FLOP/s of a square matrix product, best of ten."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(12):
        wait(device)
        start = time.perf_counter()
        torch.mm(a, b)
        wait(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def rate(device: str, call: Callable[[], object], count: int) -> float:
    """Measure images per second of a call on ``count`` images, median of five after a warm-up."""
    seconds = []
    for _ in range(6):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return count / float(np.median(seconds[1:]))


def full(device: str, config: QAlignConfig, sizes: tuple[int, ...], side: int) -> dict[str, Any]:
    """Measure the whole model on a device, the network alone and with host-side preparation."""
    dtype = torch.bfloat16
    top = ceiling(device, dtype, side)
    scorer = QAlign(random_network(config, device, dtype))
    preparing = partial(map_ahead, threads=THREADS, ahead=2 * max(sizes))
    flops = flops_per_image(config, [PROMPTS["quality"]], ALL)
    size = config.vision.image_size
    by_batch = {}
    for count in sizes:
        batch = torch.from_numpy(np.stack(images(count, size, size))).to(device)
        scorer.batch_size = count
        row: dict[str, float] = {}
        for name, shortcuts in STEPS.items():  # ends with all of them
            scorer.shortcuts = shortcuts
            row[name] = rate(device, lambda x=batch: scorer.logits(x, ["quality"]), count)
        row["share_of_ceiling"] = row["shared_prefix"] * flops / top
        row["both_tasks"] = rate(
            device, lambda x=batch: scorer.logits(x, ["quality", "aesthetics"]), count
        )
        large = images(4 * count, 1080, 1620)
        row["with_preparation_1620x1080"] = rate(
            device, lambda x=large: list(scorer.stream(x, ("quality",), preparing)), len(large)
        )
        if device != "cpu":
            row["peak_GB"] = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.reset_peak_memory_stats()
        by_batch[str(count)] = row
    name = torch.cuda.get_device_name() if device != "cpu" else "cpu"
    return {
        "device": name,
        "ceiling_tflops": top / 1e12,
        "host_threads": THREADS,
        "images_per_second_by_batch": by_batch,
    }


def main() -> None:
    """Measure and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="7B with random weights, on CUDA")
    parser.add_argument(
        "--try-full", action="store_true", help="its code on the CPU, small; no file"
    )
    options = parser.parse_args()
    if options.try_full:
        measurements = full("cpu", SMALL, (1, 2), 256)
    elif options.full:
        measurements = full("cuda", QAlignConfig(), (1, 2, 4, 8, 16, 32), 8192)
        save("qalign_full", measurements, "torch", "transformers")
    else:
        measurements = {"gflop_per_image_7b": counted_flops(), "cpu": cpu(), "loading": loading()}
        save("qalign", measurements, "torch", "transformers")
    sys.stdout.write(json.dumps(measurements, indent=1) + "\n")


if __name__ == "__main__":
    main()
