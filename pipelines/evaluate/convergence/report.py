"""What `evaluate convergence` writes: the page, the JSON, the table, and lines on the terminal."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from infra.config import pretty_json
from infra.paths import AnyPath, write_bytes
from models.metrics.catalog import METRICS
from pipelines.evaluate.convergence.comparable import facts
from pipelines.evaluate.convergence.curves import (
    COSTS,
    Curve,
    encoding_flops,
    flops_of_steps,
    unknown_costs,
)
from pipelines.evaluate.convergence.notes import BATCH, NOT_RECORDED, differing, machine, notes
from pipelines.evaluate.convergence.outcome import Compared, Group, Member, Outcome
from pipelines.evaluate.convergence.speedup import RESAMPLES, SEEDS, Bound, SpeedUp
from pipelines.evaluate.writing import aligned, arrow
from pipelines.jobs import page
from pipelines.jobs.plots import Axis, Series, plot

PAGE, EVERYTHING, TABLE = "convergence.html", "convergence.json", "curves.csv"
VERSION = 1
EVERY = 4  # of so many levels, one is drawn
SIDE, HEIGHT = 470, 330  # of a drawing, in CSS pixels


def write(outcome: Outcome, folder: AnyPath) -> str:
    """Write the three files; returns the lines for the terminal."""
    write_bytes(folder / PAGE, build(outcome).encode())
    write_bytes(folder / EVERYTHING, pretty_json(as_json(outcome)))
    write_bytes(folder / TABLE, as_csv(outcome).encode())
    rows = [_headings(outcome), *_headlines(outcome)]
    said = [*_without(outcome), *notes(outcome), str(folder / PAGE)]
    return "\n".join([*(aligned(rows) if len(rows) > 1 else ()), *said]) + "\n"


def as_csv(outcome: Outcome) -> str:
    """Return a row for each validation of each run and metric; what is unknown is empty."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["group", "run", "metric", "value", "best", *COSTS])
    for group in outcome.groups:
        for member in group.members:
            for metric, one in member.curves.items():
                columns = [one.values, _best(one, metric), *(one.costs[cost] for cost in COSTS)]
                for row in zip(*columns, strict=True):
                    cells = ["" if math.isnan(value) else repr(float(value)) for value in row]
                    rows.writerow([group.name, member.record.source, metric, *cells])
    return text.getvalue()


def _best(one: Curve, metric: str) -> Any:
    """Return the best value so far, [n]."""
    pick = np.maximum if METRICS[metric].higher_is_better else np.minimum
    return pick.accumulate(one.values)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return everything as JSON values; what is unknown is null."""
    return {
        "version": VERSION,
        "baseline": outcome.baseline.name,
        "metrics": list(outcome.metrics),
        "costs": COSTS,
        "notes": notes(outcome),
        "speedups": [
            {
                "metric": one.metric,
                "baseline": outcome.baseline.name,
                "group": one.group,
                "cost": one.cost,
                "headline": None if one.found.headline is None else asdict(one.found.headline),
                "why_none": one.found.why_none,
                "bound": None if one.found.bound is None else asdict(one.found.bound),
                "levels": [asdict(speedup) for speedup in one.found.speedups],
            }
            for one in outcome.compared
        ],
        "runs": [
            {"group": group.name, **_run(member, outcome.metrics)}
            for group in outcome.groups
            for member in group.members
        ],
        "differing_settings": differing(outcome.records),
    }


def _run(member: Member, metrics: Sequence[str]) -> dict[str, Any]:
    record = member.record
    return {
        "run": record.source,
        "name": record.name,
        "token": record.token,
        "validated": facts(record, metrics),
        "flops_of_a_step": _flops_of_a_step(member),
        "encoding_flops": encoding_flops(record),
        "unknown": unknown_costs(record),
        "settings": record.params,
        "curves": {
            metric: {"values": one.values.tolist()}
            | {cost: [*map(_finite, one.costs[cost].tolist())] for cost in COSTS}
            for metric, one in member.curves.items()
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _flops_of_a_step(member: Member) -> float | None:
    counts = flops_of_steps(member.record)
    return counts[max(counts)] if counts else None


def build(outcome: Outcome) -> str:
    """Return the page."""
    runs = len(outcome.records)
    lead = f"{runs} run{'s' * (runs > 1)} in {len(outcome.groups)} group{'s' * (runs > 1)}"
    if len(outcome.groups) > 1:
        lead += f", compared with {outcome.baseline.name}"
    sections = [("", _speedups(outcome)), *_drawings(outcome)]
    sections += [("Runs", _runs(outcome)), ("Settings that differ", _settings(outcome))]
    sections += [("Validated on", _validated(outcome))]
    return page.page("Convergence", lead, sections)


def _speedups(outcome: Outcome) -> str:
    rows = [*_headlines(outcome)]
    explained = page.note(
        "Speed-up: what the first group had spent when its best value so far came to the level, "
        "over what the other had; below 1 the other is slower. Between two validations the value "
        "is interpolated in the logarithm of the cost; nothing is extrapolated. The level is the "
        "best that all runs of both groups reach, or without one the first of the better group."
    ) + page.note(
        "Range: from the lowest to the highest ratio that is possible with every crossing anywhere "
        "between the two validations around it, and of each group any seed. Over seeds: the "
        f"interval of 95 % of {RESAMPLES:,} resamples, from {SEEDS} seeds a group on. A run "
        "records the mean over its images only, so that neither holds what another choice of "
        "images would change."
    )
    several = [group.name for group in outcome.groups if len(group.members) > 1]
    drawn = [
        f"The curve of {name} is the mean of its seeds, at the steps that all of them validated, "
        "with bars from the lowest to the highest."
        for name in several
    ]
    remarks = "".join(map(page.note, [*drawn, *_without(outcome), *notes(outcome)]))
    return (page.table(_headings(outcome), rows) + explained if rows else "") + remarks


def _headings(outcome: Outcome) -> list[str]:
    first = f"{outcome.baseline.name} spent"
    return ["level", "cost", first, "group", "spent", "speed-up", "range", "over seeds"]


def _headlines(outcome: Outcome) -> Iterator[list[str]]:
    """Yield a row for each metric, group and cost: the speed-up at the best level, or its bound."""
    for one in outcome.compared:
        found = one.found.headline or one.found.bound
        if found is None:
            continue
        spent = [_spent(value, one.cost) for value in (found.baseline, found.other)]
        if isinstance(found, Bound):
            marks = (">", "\N{LESS-THAN OR EQUAL TO}")[:: 1 if found.is_lowest else -1]
            spent = [f"{mark} {text}" for mark, text in zip(marks, spent, strict=True)]
            told = [f"{'>' if found.is_lowest else '<'} {found.ratio:.3g}", "-", "-"]
        else:
            sampled = "-" if found.sampled is None else _range(*found.sampled)
            told = [f"{found.ratio:.3g}", _range(found.low, found.high), sampled]
        level = f"{one.metric} {arrow(one.metric)} {found.level:.4g}"
        yield [level, COSTS[one.cost], spent[0], one.group, spent[1], *told]


def _without(outcome: Outcome) -> Iterator[str]:
    """Yield a sentence for each metric and group without a speed-up, and for each reason."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for one in outcome.compared:
        if one.found.why_none:
            key = one.metric, one.group, one.found.why_none
            reasons.setdefault(key, []).append(COSTS[one.cost])
    for (metric, group, why), costs in reasons.items():
        yield (
            f"The speed-up of {group} over {outcome.baseline.name} by {metric} is not known in "
            f"{', '.join(costs)}: {why}."
        )


def _range(low: float, high: float) -> str:
    return f"{low:.3g}\N{EN DASH}{high:.3g}"


def _spent(value: float, cost: str) -> str:
    if cost == "steps":
        return f"{value:,.0f}"
    return f"{value:.3g}" if cost == "hours" else _scientific(value)


def _drawings(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Yield a section for each metric: its curves, and the speed-up against the level."""
    for metric in outcome.metrics:
        drawn = [_curves(outcome, metric, cost) for cost in _told_apart(outcome, metric)]
        drawn += [_by_level(outcome, metric, group.name) for group in outcome.groups[1:]]
        cells = "".join(f'<div style="width:{SIDE}px">{one}</div>' for one in drawn if one)
        grid = f'<div style="display:flex;flex-wrap:wrap;gap:0 20px">{cells}</div>'
        yield f"{metric} {arrow(metric)}", grid


def _told_apart(outcome: Outcome, metric: str) -> list[str]:
    """Return the costs without that of FLOPs with encoding, where no run has encoded anything."""
    costs = [one.costs for group in outcome.groups for one in group.curves(metric)]
    same = all(np.array_equal(one["flops"], one["flops_and_encoding"]) for one in costs)
    return [cost for cost in COSTS if not same or cost != "flops_and_encoding"]


def _curves(outcome: Outcome, metric: str, cost: str) -> str:
    """Draw a metric against a cost, a line for each group."""
    series = [_series(group, metric, cost) for group in outcome.groups]
    y = Axis(label=f"{metric} {arrow(metric)}")
    return plot(series, Axis(label=COSTS[cost], is_log=True), y, width=SIDE, height=HEIGHT)


def _by_level(outcome: Outcome, metric: str, group: str) -> str:
    """Draw the speed-up of a group against the level of a metric, a line for each cost."""
    found = [one for one in outcome.compared if (one.metric, one.group) == (metric, group)]
    series = [_against_level(one) for one in found if one.found.speedups]
    x = Axis(label=f"level of {metric} {arrow(metric)}")
    y = Axis(label=f"speed-up of {group} over {outcome.baseline.name}", is_log=True)
    return plot(series, x, y, width=SIDE, height=HEIGHT)


def _series(group: Group, metric: str, cost: str) -> Series:
    """Return the mean curve of a group's seeds, at the steps that all have validated."""
    curves = group.curves(metric)
    shared = set.intersection(*({*one.steps.tolist()} for one in curves))
    rows = [np.array([step in shared and step > 0 for step in one.steps], bool) for one in curves]
    values = np.array([one.values[row] for one, row in zip(curves, rows, strict=True)])
    costs = np.array([one.costs[cost][row] for one, row in zip(curves, rows, strict=True)])
    return Series(
        name=group.name,
        xs=costs.mean(axis=0).tolist(),
        ys=values.mean(axis=0).tolist(),
        low=values.min(axis=0).tolist(),
        high=values.max(axis=0).tolist(),
        is_line=True,
    )


def _against_level(one: Compared) -> Series:
    chosen: list[SpeedUp] = [*one.found.speedups[::-EVERY]]
    return Series(
        name=COSTS[one.cost],
        xs=[found.level for found in chosen],
        ys=[found.ratio for found in chosen],
        low=[found.low for found in chosen],
        high=[found.high for found in chosen],
        is_line=True,
    )


def _runs(outcome: Outcome) -> str:
    header = ["group", "run", "last step", "batch", "FLOPs a step", "encoding", "hours", "machine"]
    return page.table(
        header,
        [
            _row(group.name, member, outcome.metrics)
            for group in outcome.groups
            for member in group.members
        ],
    )


def _row(group: str, member: Member, metrics: Sequence[str]) -> list[str]:
    record, one = member.record, member.curves[metrics[0]]
    encoding = encoding_flops(record)
    hours = one.costs["hours"][-1]
    return [
        group,
        record.source,
        f"{one.steps[-1]:,.0f}",
        record.params.get(BATCH, "-"),
        _scientific(_flops_of_a_step(member)),
        "none" if encoding == 0 else _scientific(encoding),
        f"{hours:.3g}" if math.isfinite(hours) else "-",
        machine(record),
    ]


def _scientific(value: float | None) -> str:
    """Write a count of operations, such as 1.2e19."""
    return NOT_RECORDED if value is None else f"{value:.3g}".replace("e+", "e")


def _settings(outcome: Outcome) -> str:
    """Show the settings in which runs differ, a column for each group."""
    rows = [
        [name, *(_setting(group, name) for group in outcome.groups)]
        for name in differing(outcome.records)
    ]
    return page.table(["setting", *(group.name for group in outcome.groups)], rows) if rows else ""


def _setting(group: Group, name: str) -> str:
    """Return the values that a group's runs have of a setting, each once."""
    return ", ".join(dict.fromkeys(one.params.get(name, NOT_RECORDED) for one in group.records))


def _validated(outcome: Outcome) -> str:
    """Show what all runs agree in; with how many of them recorded it."""
    found: dict[str, list[str | float]] = {}
    for record in outcome.records:
        for name, value in facts(record, outcome.metrics).items():
            found.setdefault(name, []).append(value)
    rows = [[name, str(values[0]), f"{len(values)}"] for name, values in found.items()]
    return page.table(["recorded", "value", "by runs"], rows) if rows else ""
