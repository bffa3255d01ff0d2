"""Perception-distortion planes: how good pictures look against how far they are from HQ.

The distortion is PSNR, or without HQ pictures indrmse, as in Figure 8 of the paper (the plane is
that of Blau and Michaeli 2018). There is a plane for each metric of perception.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from typing import Literal

from models.metrics.catalog import METRICS
from pipelines.evaluate.summary import PAGE as EVALUATION
from pipelines.evaluate.summary import Value
from pipelines.jobs import page, plots
from pipelines.jobs.plots import Axis, Series

DISTORTIONS = ("psnr", "indrmse")  # the first that there is
PERCEPTIONS = (
    *("lpips", "lpips_vgg", "dists", "fid", "fid_legacy", "fid_dinov2", "mmd_dinov2"),
    *("mmd_dinov2_unbiased", "qalign", "musiq", "clipiqa", "niqe", "brisque"),
)
OPTIONS = ("solver", "steps", "sigma_s", "strength")
ALONG = ("steps", "strength", "sigma_s")  # of which a line goes along the first that varies
SIDE = 450  # pixels of the width of a plane, so that two stand side by side
READING = (
    "Beside each point of the flow stands the option that its line goes along. Bars are intervals "
    "of 95 %. Where a plane has the VAE's reconstruction of the HQ pictures, a second one shows "
    "the other points from nearer."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A method on the planes."""

    name: str
    kind: Literal["flow", "start", "other", "bound"]
    """A way of the model's flow, the posterior mean where that begins, a method that is not the
    model's, or the VAE's reconstruction of HQ, which no flow in its latents surpasses."""
    solver: str | None = None
    steps: int | None = None
    sigma_s: float | None = None
    strength: float | None = None
    evaluations: int | None = None
    """Of the flow's network for each picture; None where that is not known."""
    values: Mapping[str, Value]
    """By metric."""

    def at(self, metric: str, what: str = "value") -> float:
        """Return a value, or an end of its interval; NaN where there is none."""
        found = getattr(self.values.get(metric), what, None)
        return nan if found is None else float(found)


def build(points: Sequence[Point]) -> str:
    """Return the page.

    Args:
        points: those of the flow first, the bound last.
    """
    metrics = [name for name in METRICS if not all(isnan(point.at(name)) for point in points)]
    perceptions = [name for name in PERCEPTIONS if name in metrics]
    distortion = next((name for name in DISTORTIONS if name in metrics), None)
    names = [one.name for one in series(points, "", "")]
    sections = [("", plots.legend(names) + page.note(READING))]
    if distortion is None:
        missing = f"There is no axis of distortion without {' or '.join(DISTORTIONS)}."
        sections = [("", page.note(missing))]
    else:
        sections += [(name, planes(points, distortion, name)) for name in perceptions]
    shown = [*([distortion] if distortion else []), *perceptions]
    note = page.note(f"{EVALUATION} has all metrics, with intervals and what they depend on.")
    sections += [("Values", table(points, shown) + note)]
    flow = sum(point.kind == "flow" for point in points)
    count = next(iter(points[0].values.values())).fingerprint.n
    lead = f"{flow:,} ways of restoring by one model, each on {count:,} pictures"
    return page.page("The perception-distortion plane", lead, sections)


def planes(points: Sequence[Point], x: str, y: str) -> str:
    """Draw a metric of perception against one of distortion, and nearer without the bound."""
    near = [point for point in points if point.kind != "bound"]
    drawn = [series(near, x, y)]
    if len(near) < len(points):  # so far away that the labels of the others would cover each other
        drawn.insert(0, [replace(one, labels=None) for one in series(points, x, y)])
    plotted = [plots.plot(one, axis(x), axis(y), width=SIDE, has_legend=False) for one in drawn]
    return page.grid(plotted, SIDE)


def axis(metric: str) -> Axis:
    """Return the axis of a metric, which says where the better end is."""
    better = "more" if METRICS[metric].higher_is_better else "less"
    return Axis(label=f"{metric}, {better} is better")


def series(points: Sequence[Point], x: str, y: str) -> list[Series]:
    """Group points for a plot: those of the flow that differ in one option are joined.

    Args:
        points: those of the flow first, the bound last, so that equal series look equal in both
            plots of a metric.
        x: metric from left to right.
        y: metric from below upwards.
    """
    flow = [point for point in points if point.kind == "flow"]
    varied = [name for name in OPTIONS if len({getattr(point, name) for point in flow}) > 1]
    along = next((name for name in ALONG if name in varied), ALONG[0])
    groups: dict[str, list[Point]] = {}
    for point in flow:
        fixed = [name for name in varied if name not in ("solver", along)]
        said = [f"{point.solver} by {along}", *(f"{n} {getattr(point, n)}" for n in fixed)]
        groups.setdefault(", ".join(said), []).append(point)
    joined = [
        coordinates(name, sorted(some, key=lambda one: getattr(one, along)), x, y, along)
        for name, some in groups.items()
    ]
    return joined + [coordinates(one.name, [one], x, y) for one in points if one.kind != "flow"]


def coordinates(name: str, points: Sequence[Point], x: str, y: str, along: str = "") -> Series:
    """Return points that are joined, each labelled with its value of the option ``along``."""
    return Series(
        name=name,
        xs=[point.at(x) for point in points],
        ys=[point.at(y) for point in points],
        low=[point.at(y, "low") for point in points],
        high=[point.at(y, "high") for point in points],
        labels=[f"{getattr(point, along):g}" for point in points] if along else None,
        is_line=True,
    )


def table(points: Sequence[Point], metrics: Sequence[str]) -> str:
    """Show the options, the cost and the values of every point."""
    facts = (*OPTIONS, "evaluations")
    rows = [
        [
            point.name,
            *(cell(getattr(point, name)) for name in facts),
            *(cell(point.at(name)) for name in metrics),
        ]
        for point in points
    ]
    return page.table(["method", *facts, *metrics], rows)


def cell(value: str | float | None) -> str:
    """Write an option or a value; a dash where there is none."""
    if value is None or (isinstance(value, float) and isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
