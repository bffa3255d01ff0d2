"""A run's validations against what it had spent by then: steps, FLOPs, hours.

The trainers log, for the steps since the line before, the seconds of a step and its rate of counted
operations, whose product is the count of a step. Steps after which no line was logged, such as
those before a save, are taken to be like those of the next line. What was spent at a validation
behind the last line is unknown.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.evaluate.convergence.records import SECONDS, TFLOPS, VALIDATION, RunRecord

Floats = npt.NDArray[np.float64]
COSTS = {
    "steps": "optimizer steps",
    "flops": "training FLOPs",
    "flops_and_encoding": "FLOPs with encoding",
    "hours": "training hours",
}
"""What quality is paid in; with encoding, the latents of the training set are counted too."""
FORK = "parent.run"  # the tag of a run that was forked from another


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric of a run at its validations, in the order of their steps."""

    steps: Floats
    values: Floats
    """Finite, [n]."""
    costs: Mapping[str, Floats]
    """What had been spent, [n], by the names of `COSTS`; NaN where it is unknown."""
    undefined: int
    """Validations without a finite value, which are left out."""


def curve(record: RunRecord, metric: str) -> Curve:
    """Return the validations of a run by a metric; an empty curve if it has none."""
    points = record.points.get(VALIDATION + metric, {})
    defined = {step: value for step, value in points.items() if math.isfinite(value)}
    steps, values = (np.array([*some], np.float64) for some in (defined, defined.values()))
    return Curve(steps, values, _costs(record, steps), len(points) - len(defined))


def _costs(record: RunRecord, steps: Floats) -> dict[str, Floats]:
    """Return what a run had spent at some of its steps."""
    flops = accumulated(flops_of_steps(record), steps)
    encoding = encoding_flops(record)
    unknown = np.full(len(steps), np.nan)
    seconds = {} if FORK in record.tags else record.points.get(SECONDS, {})
    return {
        "steps": steps,
        "flops": flops,
        "flops_and_encoding": unknown if encoding is None else flops + encoding,
        "hours": accumulated(seconds, steps) / 3600,
    }


def flops_of_steps(record: RunRecord) -> dict[int, float]:
    """Return the counted operations of a step of all ranks, by the step at which it was logged."""
    seconds, rates = (record.points.get(name, {}) for name in (SECONDS, TFLOPS))
    return {step: 1e12 * rates[step] * seconds[step] for step in seconds.keys() & rates.keys()}


def encoding_flops(record: RunRecord) -> float | None:
    """Return what it took to encode the latents: 0 for a run without any; None: unknown."""
    if record.params.get("draws") != "cached":
        return 0.0
    counted = record.params.get("encoding_flops")
    return None if counted is None else float(counted)


def accumulated(per_step: Mapping[int, float], steps: Floats) -> Floats:
    """Add up what single steps cost.

    Args:
        per_step: what a step costs, by the last step that it holds for; it holds from the entry
            before on.
        steps: how many are done, [n].

    Returns:
        The cost of so many, [n]; NaN beyond the last entry.
    """
    if not per_step:
        return np.full(len(steps), np.nan)
    ends = np.array(sorted(per_step), np.float64)
    costs = np.array([per_step[step] for step in sorted(per_step)])
    total = np.cumsum(costs * np.diff(ends, prepend=0.0))
    spent: Floats = np.interp(steps, [0.0, *ends], [0.0, *total], right=np.nan)
    return spent


def unknown_costs(record: RunRecord) -> dict[str, str]:
    """Say of each cost that a run did not record why it is unknown."""
    missing: dict[str, str] = {}
    if not flops_of_steps(record):
        missing["flops"] = "it was recorded by a version that counted no operations"
    if "flops" in missing or encoding_flops(record) is None:
        missing["flops_and_encoding"] = missing.get(
            "flops", "it was recorded by a version that did not count the encoding"
        )
    if FORK in record.tags:
        missing["hours"] = "it is a fork, whose first hours are those of another run"
    elif SECONDS not in record.points:
        missing["hours"] = "no seconds of its steps are recorded"
    return missing
