"""What a run would cost, said without training: operations, memory, hours and files.

What a pass needs besides weights and gradients is counted by `trainers.loop.memory` for two numbers
of samples, which gives the activations of any micro-batch: fixed + samples x each. A pass of real
samples on this device gives the speed that hours are told at.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from infra.distributed import world_size
from infra.errors import UsageError
from infra.paths import AnyPath
from trainers.loop.batches import plan_batches
from trainers.loop.checkpoints import step_of
from trainers.loop.config import TrainerConfig
from trainers.loop.cost import memory_gb
from trainers.loop.memory import Plain, advice, peak_bytes, room, samples_of
from trainers.loop.noise import Noise
from trainers.loop.task import Task

RANKS = (1, 2, 4, 8, 16, 32, 64)  # of the table
SAMPLES = (2, 4)  # counted: of a single one, passing things of the size of weights may be the most
SAVED_COPIES = 7  # of the weights' size besides averages: model, moments, and of the engine four


@dataclass(frozen=True, slots=True)
class Measured:
    """What passes on this device took."""

    peaks: tuple[int, int]
    """Bytes that lived at once, besides what was there before, for each of `SAMPLES`."""
    frozen: int
    """Bytes of what was there before besides weights and gradients, such as a frozen encoder."""
    samples: int
    """Of the timed pass."""
    seconds: float
    """That it took."""

    def activations_gb(self, samples: int) -> float:
        """Return what so many samples need besides weights and gradients, in 1e9 bytes."""
        few, more = SAMPLES
        least, most = self.peaks
        return (least + (most - least) * (samples - few) / (more - few)) / 1e9


def dry_run(
    task: Task, config: TrainerConfig, device: torch.device, saved: Sequence[AnyPath]
) -> str:
    """Measure; returns the report, which says everything.

    Args:
        task: what would be trained.
        config: how.
        device: on which it is measured.
        saved: the checkpoints that the run has, oldest first.
    """
    per_sample = task.flops_per_sample()
    flops = per_sample * config.engine.global_batch_size / 1e12
    first = step_of(saved[-1]) if saved else 0
    total = flops * max(0, config.loop.max_steps - first)
    count = sum(value.numel() for value in task.network.parameters())
    found = measured(task, config, device)
    rate = per_sample * found.samples / found.seconds / 1e12
    fixed = config.engine.zero_stage
    stage = "ZeRO 0 for one rank, and 1 for several" if fixed is None else f"ZeRO {fixed}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "one CPU"
    lines = [
        f"{count:,} parameters; {flops:.4g} TFLOP per step; {total:.4g} TFLOP in all, for steps "
        f"{first} to {config.loop.max_steps}",
        f"measured here, on {name}: {found.samples} samples forward and backward in "
        f"{found.seconds:.3g} s, {rate:.3g} TFLOP/s",
        "",
        *table(config, count, found, total / rate / 3600),
        *_fitting(task, config, device),
        "",
        f"GB of each rank at {stage}. Hours are at the measured rate for each rank, "
        " without reading, validating and saving; at another rate, they are "
        f"{total / 3600:.4g} divided by the TFLOP/s of all ranks together.",
        files(config, count, saved),
        "Nothing was written.",
    ]
    return "\n".join(lines) + "\n"


def _fitting(task: Task, config: TrainerConfig, device: torch.device) -> Iterator[str]:
    """Yield a line that says whether a rank fits its GPU; of a CPU, nothing."""
    if device.type == "cuda":
        plan = plan_batches(config.engine, world_size())
        yield f"On this GPU {advice(task, config, plan, device, room(device))}."


def table(
    config: TrainerConfig, parameters: int, found: Measured, hours_of_one: float
) -> Iterator[str]:
    """Yield the lines that say what a rank holds, and how long it takes, by number of ranks.

    Args:
        config: of the run.
        parameters: of the network.
        found: on this device.
        hours_of_one: what one rank takes.
    """
    engine, averages = config.engine, len(config.ema.decays)
    parts = list(memory_gb(parameters, 1, 0, averages))
    names = ["ranks", "micro-batch", *parts, "frozen", "activations", "total", "hours"]
    yield "  ".join(names)
    for ranks in sorted({world_size(), *RANKS}):
        try:
            plan = plan_batches(engine, ranks)
        except UsageError:  # so many ranks cannot share the batch
            continue
        held = memory_gb(parameters, ranks, engine.stage(ranks), averages).values()
        numbers = [*held, found.frozen / 1e9, found.activations_gb(plan.micro_batch_size)]
        shown = [*(f"{value:.3g}" for value in (*numbers, sum(numbers), hours_of_one / ranks))]
        cells = [str(ranks), str(plan.micro_batch_size), *shown]
        yield "  ".join(cell.rjust(len(name)) for cell, name in zip(cells, names, strict=True))


def files(config: TrainerConfig, parameters: int, saved: Sequence[AnyPath]) -> str:
    """Say what the run would write, and where it would go on.

    Args:
        config: of the run.
        parameters: of the network.
        saved: its checkpoints, oldest first.
    """
    loop = config.loop
    size = 4 * parameters * (SAVED_COPIES + len(config.ema.decays)) / 1e9
    kept = loop.keep_last + loop.keep_best
    goes_on = f"It would go on from {saved[-1]}. " if saved else ""
    return (
        f"{goes_on}It would write to {loop.output}: checkpoints of about {size:.3g} GB, one in "
        f"{loop.save_every} steps, of which {kept} stay (--keep-last {loop.keep_last} --keep-best "
        f"{loop.keep_best}), {kept * size:.3g} GB, and one more while it is written; at the end "
        f"the averaged network, {4 * parameters / 1e9:.3g} GB, and of a flow a bundle, which has "
        "it again with the networks around it; log.jsonl, config.json and pictures."
    )


def measured(task: Task, config: TrainerConfig, device: torch.device) -> Measured:
    """Take gradients of the loss of some real samples; the weights stay as they are."""
    plan = plan_batches(config.engine, world_size())
    (least, given), (most, _) = (peak_bytes(task, config, device, count) for count in SAMPLES)
    counted = Measured((least, most), given, 0, 0.0)
    samples = min(SAMPLES[0], plan.micro_batch_size)
    if device.type == "cuda" and _fits(counted.activations_gb(plan.micro_batch_size), device):
        samples = plan.micro_batch_size
    batch = samples_of(task, samples)
    if device.type == "cuda":
        _pass(task, config, device, batch)  # the first of a size chooses its kernels
    began = time.perf_counter()
    _pass(task, config, device, batch)
    return replace(counted, samples=samples, seconds=time.perf_counter() - began)


def _pass(task: Task, config: TrainerConfig, device: torch.device, batch: Any) -> None:
    count = len(batch.keys)
    noise = Noise(seed=config.loop.seed, step=0, positions=range(count), total=count, device=device)
    loss = task.losses(Plain(task.trained, config.engine, device), batch, noise)["loss"]
    torch.autograd.backward(loss)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fits(gb: float, device: torch.device) -> bool:
    """Tell whether so much is free on a GPU, with some to spare."""
    return 1e9 * gb < 0.8 * torch.cuda.mem_get_info(device)[0]
