"""A loss or gradient that is not finite: which sample it comes from, and what to do about it."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from infra.distributed import gathered, rank
from infra.paths import AnyPath
from trainers.loop.changes import peak_at
from trainers.loop.checkpoints import step_of
from trainers.loop.config import TrainerConfig
from trainers.loop.engine import Engine
from trainers.loop.noise import Noise
from trainers.loop.task import Task

Micro = tuple[Any, Noise]
"""A micro-batch and its random numbers."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """One sample of the step."""

    key: str
    rank: int
    magnitude: float
    """Of its inputs, the largest; NaN or infinite where one of them is."""
    loss: float
    """Of this sample by itself."""


@torch.no_grad()
def examined(task: Task, engine: Engine, micros: Sequence[Micro]) -> list[Suspect]:
    """Compute the loss of every sample of a step by itself; all ranks call it."""
    mine = [
        Suspect(
            key=batch.keys[row],
            rank=rank(),
            magnitude=max((value.abs().max().item() for value in _inputs(one)), key=_badness),
            loss=task.losses(engine, one, its)["loss"].item(),
        )
        for batch, noise in micros
        for row, one, its in _samples(batch, noise)
    ]
    return [suspect for found in gathered(mine) for suspect in found]


def said(what: str, step: int, suspects: Sequence[Suspect]) -> str:
    """Say what was not finite, and which sample it comes from."""
    wrong = [one for one in suspects if not math.isfinite(one.magnitude)]
    lost = [one for one in suspects if not math.isfinite(one.loss)]
    if wrong:
        why = f"the inputs of {_names(wrong)} hold values that are not finite"
    elif has_diverged(suspects):
        why = (
            f"the losses of {len(lost)} of {len(suspects)} samples are not finite, though their "
            "inputs are: the weights have diverged"
        )
    elif lost:
        largest = max(one.magnitude for one in lost)
        why = (
            f"that of {_names(lost)} by itself is not, though the inputs are finite, up to "
            f"{largest:.3g}; those of the other {len(suspects) - len(lost)} samples are finite"
        )
    else:
        most = max(suspects, key=lambda one: one.loss)
        why = (
            "inputs and loss of each sample by itself are finite; the largest loss, "
            f"{most.loss:.3g}, is that of {_names([most])}"
        )
    return f"{what} of step {step} is not finite: {why}"


def remedy(
    step: int, saved: Sequence[AnyPath], suspects: Sequence[Suspect], config: TrainerConfig
) -> str:
    """Return what makes the run go on.

    Args:
        step: that failed.
        saved: the run's checkpoints, oldest first.
        suspects: the samples of the step.
        config: of the run; the changes that it has stay.
    """
    steps = " ".join(map(str, sorted({*config.changes.skip_steps, step})))
    leave_out = (
        f"run the same command again with --skip-steps {steps}, which leaves this batch out, or "
        "with --skip-non-finite 100, which leaves out so many such batches as they come"
    )
    slow_down = _slow_down(step, saved, config)
    if has_diverged(suspects):
        return slow_down
    is_known = any(not math.isfinite(one.loss + one.magnitude) for one in suspects)
    if is_known:
        return leave_out.capitalize()
    return f"{slow_down}. If it is this batch alone, {leave_out}"


def _slow_down(step: int, saved: Sequence[AnyPath], config: TrainerConfig) -> str:
    """Return how to go on at a tenth of the rate, from weights that were there before the step."""
    before = [checkpoint for checkpoint in saved if step_of(checkpoint) < step]
    at = step_of(before[-1]) if before else 0
    changes = [*config.changes.peak_from, (at, peak_at(at, config) / 10)]
    kept = {begin: peak for begin, peak in changes if begin <= at}
    pairs = " ".join(f"{begin} {peak:.3g}" for begin, peak in kept.items())
    option = f"--peak-from {pairs}, a tenth of the learning rate from step {at} on"
    if before == list(saved):  # the newest, or none: what the same command goes on from
        return f"Run the same command again with {option}"
    where = f"--resume {before[-1]} " if before else ""
    return (
        f"The checkpoint of step {step} has these weights: run the command with another --output "
        f"and {where}{option}"
    )


def has_diverged(suspects: Sequence[Suspect]) -> bool:
    """Tell whether most samples fail though their inputs are sound, which is not their fault."""
    lost = [one for one in suspects if not math.isfinite(one.loss)]
    is_sound = all(math.isfinite(one.magnitude) for one in suspects)
    return is_sound and len(lost) > max(1, len(suspects) // 2)


def _samples(batch: Any, noise: Noise) -> list[tuple[int, Any, Noise]]:
    """Divide a micro-batch: number, batch and noise of each sample."""
    return [
        (row, _row(batch, row), replace(noise, positions=noise.positions[row : row + 1]))
        for row in range(len(batch.keys))
    ]


def _row(batch: Any, row: int) -> Any:
    """Return a batch of one sample: each field that has a value for every sample, cut to one."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    count = len(batch.keys)
    cut = {name: value[row : row + 1] for name, value in fields.items() if len(value) == count}
    return replace(batch, **cut)


def _inputs(batch: Any) -> list[Tensor]:
    values = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return [value.float() for value in values if isinstance(value, Tensor)]


def _badness(magnitude: float) -> float:
    return math.inf if math.isnan(magnitude) else magnitude


def _names(suspects: Sequence[Suspect]) -> str:
    return ", ".join(f"{one.key!r} (rank {one.rank})" for one in suspects)
