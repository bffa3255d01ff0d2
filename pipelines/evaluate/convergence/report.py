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
from pipelines.evaluate.convergence.outcome import BATCH, Compared, Group, Member, Outcome
from pipelines.evaluate.convergence.speedup import RESAMPLES, SEEDS, SpeedUp
from pipelines.jobs import page
from pipelines.jobs.plots import Axis, Series, plot

PAGE, EVERYTHING, TABLE = "convergence.html", "convergence.json", "curves.csv"
VERSION = 1
DRAWN = ("steps", "flops", "hours")
EVERY = 4  # of so many levels, one is drawn


def write(outcome: Outcome, folder: AnyPath) -> str:
    """Write the three files; returns the lines for the terminal."""
    write_bytes(folder / PAGE, build(outcome).encode())
    write_bytes(folder / EVERYTHING, pretty_json(as_json(outcome)))
    write_bytes(folder / TABLE, as_csv(outcome).encode())
    rows = [_headings(outcome), *_headlines(outcome)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    said = [*_without(outcome), *outcome.notes, str(folder / PAGE)]
    return "\n".join([*(lines if len(rows) > 1 else ()), *said]) + "\n"


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
        "notes": list(outcome.notes),
        "speedups": [
            {
                "metric": one.metric,
                "baseline": outcome.baseline.name,
                "group": one.group,
                "cost": one.cost,
                "headline": None if one.found.headline is None else asdict(one.found.headline),
                "why_none": one.found.why_none,
                "levels": [asdict(speedup) for speedup in one.found.speedups],
            }
            for one in outcome.compared
        ],
        "runs": [
            {"group": group.name, **_run(member, outcome.metrics)}
            for group in outcome.groups
            for member in group.members
        ],
        "differing_settings": outcome.differing(),
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
        "best that all runs of both groups reach."
    ) + page.note(
        "Lowest to highest: every crossing anywhere between the two validations around it, and of "
        f"each group any seed. Over seeds: an interval of 95 % of {RESAMPLES:,} resamples, from "
        f"{SEEDS} seeds a group on. A run records the mean over its images only, so that neither "
        "holds what another choice of images would change."
    )
    notes = "".join(map(page.note, [*_without(outcome), *outcome.notes]))
    return (page.table(_headings(outcome), rows) + explained if rows else "") + notes


def _headings(outcome: Outcome) -> list[str]:
    first = f"{outcome.baseline.name} spent"
    return ["metric", "level", "cost", first, "group", "spent", "speed-up", "range", "over seeds"]


def _headlines(outcome: Outcome) -> Iterator[list[str]]:
    """Yield a row for each metric, group and cost that has a speed-up: that at the best level."""
    for one in outcome.compared:
        found = one.found.headline
        if found is None:
            continue
        spent = [_spent(value, one.cost) for value in (found.baseline, found.other)]
        sampled = "-" if found.sampled is None else _range(*found.sampled)
        yield [
            f"{one.metric} {_arrow(one.metric)}",
            f"{found.level:.4g}",
            COSTS[one.cost],
            spent[0],
            one.group,
            spent[1],
            f"{found.ratio:.3g}",
            _range(found.low, found.high),
            sampled,
        ]


def _without(outcome: Outcome) -> Iterator[str]:
    """Yield a sentence for each metric and group without a speed-up, and for each reason."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for one in outcome.compared:
        if one.found.why_none:
            key = one.metric, one.group, one.found.why_none
            reasons.setdefault(key, []).append(COSTS[one.cost])
    for (metric, group, why), costs in reasons.items():
        yield (
            f"There is no speed-up of {group} over {outcome.baseline.name} by {metric} in "
            f"{', '.join(costs)}: {why}."
        )


def _range(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}"


def _spent(value: float, cost: str) -> str:
    return f"{value:,.0f}" if cost == "steps" else f"{value:.4g}"


def _arrow(metric: str) -> str:
    return "↑" if METRICS[metric].higher_is_better else "↓"


def _drawings(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Yield the sections of each metric: its curves, and the speed-up against the level."""
    for metric in outcome.metrics:
        y = Axis(label=f"{metric} {_arrow(metric)}")
        drawn = [
            plot(
                [_series(group, metric, cost) for group in outcome.groups],
                Axis(label=COSTS[cost], is_log=True),
                y,
            )
            for cost in DRAWN
        ]
        several = any(len(group.members) > 1 for group in outcome.groups)
        remark = page.note(
            "Of several seeds: their mean, at the steps that all of them validated, and bars from "
            "the lowest to the highest."
        )
        yield f"{metric} {_arrow(metric)}", "".join(drawn) + (remark if several else "")
        for group in outcome.groups[1:]:
            found = [
                one for one in outcome.compared if (one.metric, one.group) == (metric, group.name)
            ]
            series = [_against_level(one) for one in found if one.found.speedups]
            x, ratio = Axis(label=f"level of {metric}"), Axis(label="speed-up", is_log=True)
            title = f"{metric}: speed-up of {group.name} over {outcome.baseline.name} by level"
            yield title, plot(series, x, ratio)


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
    header = ["group", "run", "last step", "batch", "FLOPs a step", "encoding", "hours", "host"]
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
        record.tags.get("host", "-"),
    ]


def _scientific(value: float | None) -> str:
    return "not recorded" if value is None else f"{value:.4g}"


def _settings(outcome: Outcome) -> str:
    rows = [[name, *values] for name, values in outcome.differing().items()]
    return page.table(["setting", *(one.source for one in outcome.records)], rows) if rows else ""


def _validated(outcome: Outcome) -> str:
    """Show what all runs agree in; with how many of them recorded it."""
    found: dict[str, list[str | float]] = {}
    for record in outcome.records:
        for name, value in facts(record, outcome.metrics).items():
            found.setdefault(name, []).append(value)
    rows = [[name, str(values[0]), f"{len(values)}"] for name, values in found.items()]
    return page.table(["recorded", "value", "by runs"], rows) if rows else ""
