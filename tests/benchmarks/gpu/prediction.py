"""What the counted kernels of a row should take on the device, by its measured ceilings.

The kernels are those of `tests.support.cuda_counts`, which needs no GPU. Each takes the most of its
operations, its bytes and a launch. Compiled, those between two products are one kernel; in a CUDA
graph a launch takes what it was measured to take there; and in a sum of the kernels' own times it
takes nothing. Clipping and the update are not counted.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from models.half import cast_weights
from models.rectified_flow import flow_matching_loss, interpolate
from models.velocity import hdit
from tests.benchmarks.gpu.ceilings import LAUNCH, MATRIX, MEMORY
from tests.benchmarks.gpu.networks import FULL
from tests.benchmarks.gpu.rows import Found, Results
from tests.support import counted_passes
from tests.support.counted_passes import CountedPass, Pass
from tests.support.cuda_counts import Gpu, Kernel, fused_kernels

Prepare = Callable[[int], Pass]


@dataclass(frozen=True)
class Model:
    """What a row runs."""

    parts: tuple[tuple[Prepare, int], ...]
    """Passes, and how often each runs."""
    batch: int
    is_fused: bool = False
    launch: str = "eager_us"
    """Which launch of `LAUNCH` its kernels have; "" is none."""


def predict(results: Results, deadline: float) -> Iterator[Found]:
    """Add ``predicted_ms``, and the time over it, to rows that lack them; yields each such row.

    Only networks of full size are counted, and only once the ceilings are known.

    Args:
        results: of a GPU; on which machine it is predicted does not matter.
        deadline: of `time.monotonic`.
    """
    gpu, found = measured_gpu(results.found), results.found
    if gpu is None:
        return
    for name, row in list(found.items()):
        timing = row["bf16"] if name.startswith("precision/") and "bf16" in row else row
        model = modelled(name, row) if "ms" in timing and "predicted_ms" not in timing else None
        if model is None or time.monotonic() > deadline:
            continue
        launch = found[LAUNCH].get(model.launch, 0.0) * 1e-6
        predicted = 1e3 * seconds(model, replace(gpu, launch=launch))
        told = {"predicted_ms": predicted, "over_prediction": timing["ms"] / predicted}
        if "kernels" in row:
            told["predicted_kernels"] = sum(len(_kernels(p, model.batch)) for p, _ in model.parts)
        added = told if timing is row else {"bf16": {**timing, **told}}
        yield results.record(name, {**row, **added})


def measured_gpu(found: Mapping[str, Found]) -> Gpu | None:
    """Return the GPU of the first rows; None of tiny sizes, or if one of its numbers is missing."""
    rows = [found.get(name, {}) for name in (MATRIX, MEMORY, LAUNCH)]
    is_full = found.get("machine", {}).get("size") == "full"
    if not is_full or any(row.get("status") != "ok" for row in rows):
        return None
    matrix, memory, launch = rows
    return Gpu(
        flops=matrix["bf16_tflops"] * 1e12,
        bandwidth=memory["tb_per_s"] * 1e12,
        launch=launch["eager_us"] * 1e-6,
        flops_float32=matrix["fp32_tflops"] * 1e12,
    )


def modelled(name: str, row: Found) -> Model | None:
    """Return what a row runs; None if nothing of it is counted."""
    kind, *rest = name.split("/")
    batch = int(rest[-1].partition("batch-")[2] or row.get("batch", 0))
    is_fused = "compiled" in name or kind == "program"
    if kind in ("sampler", "face"):
        parts = FACE if kind == "face" else SAMPLER
        parts = parts if rest[0] == "eager" else CAST[parts]
        is_replayed = rest[0] in ("graph", "compiled")
        return Model(parts, batch, is_fused, "graph_us" if is_replayed else "eager_us")
    if kind == "precision":
        return Model(((PRECISION[rest[0]], 1),), batch)
    step = STEPS.get(kind) or STEPS.get(name)
    if step is None or "fp32" in rest:
        return None
    return Model(((step, 1),), batch, is_fused, "" if kind == "kernels" else "eager_us")


def seconds(model: Model, gpu: Gpu) -> float:
    """Return the seconds of a row on a GPU."""
    total = 0.0
    for prepare, repeats in model.parts:
        kernels = _kernels(prepare, model.batch)
        total += repeats * gpu.eager(fused_kernels(kernels) if model.is_fused else kernels)
    return total


@functools.cache
def _kernels(prepare: Prepare, batch: int) -> list[Kernel]:
    return CountedPass("", functools.partial(prepare, batch)).traced().kernels


def pixel_step(batch: int) -> Pass:
    """A training step of PMRF's flow of pixels."""
    network = hdit.HDiT(hdit.PRESETS[FULL.hdit])
    x_0, x_1 = torch.empty(2, batch, 3, FULL.hdit_side, FULL.hdit_side)
    t = torch.empty(batch)

    def run() -> Any:
        return flow_matching_loss(network(interpolate(x_0, x_1, t), t), x_0, x_1)

    return network, run


def cast(prepare: Prepare) -> Prepare:
    """Return a pass whose weights are in bfloat16 before it starts."""

    def prepared(batch: int) -> Pass:
        network, run = prepare(batch)
        cast_weights(network, torch.bfloat16)
        return network, run

    return prepared


SAMPLER = ((counted_passes.velocity, FULL.steps),)
FACE = (
    (counted_passes.posterior_mean, 1),
    (counted_passes.encoding, 1),
    *SAMPLER,
    (counted_passes.decoding, 1),
)
CAST = {parts: tuple((cast(part), times) for part, times in parts) for parts in (SAMPLER, FACE)}
PRECISION: dict[str, Prepare] = {
    "encode": counted_passes.encoding,
    "decode": counted_passes.decoding,
    "predictor": counted_passes.posterior_mean,
}
STEPS: dict[str, Prepare] = {
    "flow-step": counted_passes.flow_step,
    "deepspeed": counted_passes.flow_step,
    "vae-step": counted_passes.vae_step,
    "hdit/forward": counted_passes.pixel_velocity,
    "hdit/step": pixel_step,
    "kernels/looformer": counted_passes.flow_step,
    "kernels/hdit": pixel_step,
    "program/flow": counted_passes.flow_step,
    "program/vae": counted_passes.vae_step,
}
