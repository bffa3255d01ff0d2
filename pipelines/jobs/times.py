"""The times of a job's stages, as a line, a file and a section of its page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from infra.config import pretty_json
from infra.paths import AnyPath, write_bytes
from pipelines.jobs import page as report
from pipelines.jobs.stage import StageTime


def bottleneck(times: Sequence[StageTime]) -> str:
    """Return a phrase that names the step in which the workers spent most of their time."""
    steps = {(stage.name, step): t for stage in times for step, t in stage.steps.items()}
    if not steps:
        return "nothing to do"
    stage, step = max(steps, key=lambda key: steps[key])
    share = steps[stage, step] / sum(steps.values())
    return f"step {step!r} of stage {stage!r}, {share:.0%} of the workers' time"


def closing_lines(totals: Mapping[str, Any], times: Sequence[StageTime], folder: AnyPath) -> str:
    """Return the last lines of a run: its times, its shards and its page."""
    seconds = ", ".join(f"{stage.name} {stage.wall:.1f} s" for stage in times)
    return (
        f"time: {seconds or 'none'}; bottleneck: {bottleneck(times)}\n"
        f"shards: {folder.resolve()} ({totals['shards']:,} files, {totals['bytes'] / 1e6:.1f} MB)\n"
        f"report: {(folder / 'report.html').resolve()}\n"
    )


def stage_metrics(times: Sequence[StageTime]) -> dict[str, float]:
    """Return the seconds of each stage, for MLflow."""
    return {f"seconds/{stage.name.replace(' ', '_')}": stage.wall for stage in times}


def save_times(path: AnyPath, times: Sequence[StageTime]) -> None:
    """Write the stages' times as JSON."""
    write_bytes(path, pretty_json([asdict(stage) for stage in times]))


def time_section(times: Sequence[StageTime]) -> str:
    """Return the page's section on time."""
    if not times:
        return report.note("Nothing was left to compute.")
    started = sum(stage.startup if stage.steps else stage.wall for stage in times)
    stages = [(s.name, s.wall, s.done, s.done / s.wall) for s in times if s.steps]
    steps = {f"{s.name}: {step}": t for s in times for step, t in s.steps.items()}
    return (
        report.table(["stage", "seconds", "items", "items/s"], stages)
        + report.note(
            f"Starting Ray and its workers took {started:.1f} s in all. Bottleneck: "
            f"{bottleneck(times)}. Below, the workers' seconds by step."
        )
        + report.bars(steps, unit=" s", colour=report.KEPT)
    )
