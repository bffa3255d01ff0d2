"""The dry run: whether pictures and metrics are there, and how long the measuring takes."""

import os
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch

from infra.errors import UsageError, UserError
from infra.growing import complete_lines
from infra.paths import AnyPath, path_of, read_if_there
from pipelines.evaluate.config import EvaluateConfig, MeasureConfig
from pipelines.evaluate.job import (
    Evaluation,
    as_units,
    check,
    say_failures,
    say_missing,
    spec_of,
    wanted_groups,
)
from pipelines.evaluate.judges import Found, look
from pipelines.evaluate.measured import by_mark
from pipelines.evaluate.pairs import find_pairs
from pipelines.evaluate.worker import Failure, Group, MeasurePictures

DEAREST = 6  # steps that are named
Seconds = dict[str, float]
"""By the step of a worker: reading, decoding, a metric."""


def estimate(config: EvaluateConfig) -> str:
    """Measure the first pictures on this machine, and scale by those that are left to measure.

    Returns:
        Lines for the user. Nothing is written to the output folder.

    Raises:
        UsageError: as the run itself would; or pictures that a model has not restored yet.
        UserError: the first pictures cannot be measured.
    """
    if config.rule.model or config.given.input:
        raise UsageError(
            "--dry-run: what --model restores is not there yet. python -m pipelines.restore "
            "--dry-run says how long that takes; for the metrics give a folder as --restored"
        )
    check(config)
    job = Evaluation(config)
    job.set.check()
    measure = job.config.measure
    device = measure.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        kept: AnyPath = job.state / "sources"
        kept = kept if kept.is_dir() else path_of(temporary)
        pairs = find_pairs(job.config.sets, kept, job.has_hq)
        found = look(measure.metrics, measure.weights, pairs)
        say_missing(found.missing)
        file = job.state / "measured.jsonl"
        known = by_mark(complete_lines(read_if_there(file) or b""), str(file))
        groups = [*wanted_groups(pairs, found, known, device)]
        steps = _seconds(measure, found, device, groups, Path(temporary))
    if device == "cuda":
        workers = measure.gpus or torch.cuda.device_count()
    else:
        workers = measure.workers or max(1, (os.cpu_count() or 1) // measure.threads)
    hours = sum(steps.values()) / min(workers, max(1, len(groups))) / 3600
    left = sum(len(group.pictures) for group in groups)
    return (
        f"{len(pairs.keys):,} keys, {len(pairs.methods):,} methods, {len(found.digests):,} metrics "
        f"of {len(found.digests) + len(found.missing):,}; {left:,} pictures of {len(groups):,} "
        "keys are left to read and measure\n"
        f"  measured  {_measured(steps, len(groups), device)}\n"
        f"  time      about {60 * hours:,.1f} minutes ({hours:,.2f} hours) with {workers} workers, "
        "without their start and the distances of whole sets\n"
        "nothing was written\n"
    )


def _measured(steps: Seconds, keys: int, device: str) -> str:
    if not keys:
        return "nothing: all is measured already"
    total = sum(steps.values())
    dearest = sorted(steps, key=lambda name: -steps[name])[:DEAREST]
    named = [f"{name} {100 * steps[name] / total:.0f} %" for name in dearest]
    return f"{total / keys:.3g} s a key on one worker ({device}): {', '.join(named)}"


def _seconds(
    measure: MeasureConfig, found: Found, device: str, groups: Sequence[Group], folder: Path
) -> Seconds:
    """Return the seconds of all groups by step, on one worker.

    Groups of one kind, of the same roles and metrics, take as long as the first of them. Each is
    measured twice, for the first time loads the networks.
    """
    spec = spec_of(measure, found, device, folder)
    worker, steps = MeasurePictures(spec), Seconds()
    for _, of_kind in groupby(sorted(groups, key=_kind), key=_kind):
        alike = [*of_kind]
        (unit,) = as_units(alike[: spec.batch], spec.batch)
        for _ in range(2):
            done = worker(unit)
            if done["failures"]:
                say_failures([Failure(**row) for row in done["failures"]])
                raise UserError("the first pictures cannot be measured; each has its line above")
        share = len(alike) / len(alike[: spec.batch])
        for name, seconds in done["seconds"].items():
            steps[name] = steps.get(name, 0.0) + share * seconds
    return steps


def _kind(group: Group) -> str:
    return repr((sorted(group.pictures), sorted(group.values.items()), sorted(group.features)))
