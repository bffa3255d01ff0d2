"""Q-Align's cost on a CPU: `python -m tests.benchmarks.qalign`.

A small model with random weights (OMP_NUM_THREADS=1): what each shortcut saves in counted
operations at 7B and in time at small size, what batching gives, what loading costs. On a GPU
`tests.benchmarks.gpu` measures the 7B model.
"""

import dataclasses
import itertools
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.qalign.checkpoint import Checkpoint, build, bytes_needed
from models.qalign.language import LanguageConfig
from models.qalign.network import QAlignConfig, QAlignNetwork, Shortcuts, flops_per_image
from models.qalign.prompts import PROMPTS
from models.qalign.scorer import QAlign
from models.qalign.vision import AbstractorConfig, VisionConfig
from tests.benchmarks.harness import paired, save
from tests.support.qalign_checkpoint import TINY, random_state, write_checkpoint

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


def main() -> None:
    """Measure and keep the result."""
    measurements = {"gflop_per_image_7b": counted_flops(), "cpu": cpu(), "loading": loading()}
    save("qalign", measurements, "torch", "transformers")
    sys.stdout.write(json.dumps(measurements, indent=1) + "\n")


if __name__ == "__main__":
    main()
