"""One model that restores in several ways, all of them evaluated together.

OUT/sweep.html    the planes and a table
OUT/sweep.json    every point with its options and its values

The rest of OUT is what an evaluation with --model leaves.
"""

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Final

from infra import paths
from infra.config import pretty_json
from infra.errors import BudgetExceeded
from infra.paths import AnyPath
from models.bundle_facts import BundleConfig
from models.restorer import steps_taken
from pipelines.evaluate.config import POSTERIOR_MEAN, SweepConfig
from pipelines.evaluate.inputs import has_hq
from pipelines.evaluate.planes import Point, build
from pipelines.evaluate.restoring import (
    Method,
    Methods,
    posterior_mean,
    restored_and_evaluated,
)
from pipelines.evaluate.summary import Summary, read_summary
from pipelines.jobs.stage import Engine
from pipelines.restore.config import ModelRule, Solver

PAGE, POINTS, VERSION = "sweep.html", "sweep.json", 1
VAE: Final = "vae-reconstruction"
EVALUATIONS: dict[Solver, int] = {"euler": 1, "heun": 2}  # of the network in a step


def sweep(config: SweepConfig, engine: Engine | None = None) -> Sequence[Point]:
    """Restore in all ways, evaluate, and draw the planes.

    Args:
        config: the ways, the model and the pictures.
        engine: what carries out the units; by default Ray.

    Returns:
        See `points_of`.

    Raises:
        UsageError: a model, pictures or a device that cannot be used.
        UserError: pictures that cannot be restored or measured.
        BudgetExceeded: all is done, but metrics that were asked for by name are missing.
    """
    ways: dict[str, Method] = {}
    ends: dict[str, Method] = {}

    def methods(bundle: BundleConfig, rule: ModelRule) -> Methods:
        ways.update(combinations(config, rule))
        ends.update(ends_of(bundle, rule, with_vae=has_hq(config.evaluation)))
        return {**ways, **ends}

    folder = paths.path_of(config.output)
    try:
        summary = restored_and_evaluated(config.evaluation, methods, config, engine)
    except BudgetExceeded:
        write(folder, [*points_of(read_summary(folder), ways, ends)])
        raise
    points = [*points_of(summary, ways, ends)]
    write(folder, points)
    return points


def combinations(config: SweepConfig, rule: ModelRule) -> Iterator[tuple[str, Method]]:
    """Yield every combination of the options, after a name that says it.

    A noise as in training and a full strength are not in the name.
    """
    sigmas = config.sigma_s or (None,)
    for solver, steps, sigma, strength in product(
        config.solver, config.steps, sigmas, config.strength
    ):
        name = f"{solver}-{steps}"
        name += "" if sigma is None else f"-sigma-{sigma}"
        name += "" if strength == 1 else f"-strength-{strength}"
        way = replace(rule, solver=solver, steps=steps, sigma_s=sigma, strength=strength)
        yield name, Method(rule=way)


def ends_of(bundle: BundleConfig, rule: ModelRule, *, with_vae: bool) -> Methods:
    """Return the ends of a model's plane: its posterior mean, and its VAE's reconstruction of HQ.

    Args:
        bundle: the model.
        rule: of which the model, the seed and the precision are taken.
        with_vae: whether there are HQ pictures to reconstruct.
    """
    ends = dict(posterior_mean(bundle, rule))
    if with_vae and "vae" in bundle.parts:
        vae = ModelRule(model=rule.model, method=VAE, seed=rule.seed, precision=rule.precision)
        ends[VAE] = Method(rule=vae, of_hq=True)
    return ends


def points_of(summary: Summary, ways: Collection[str], ends: Collection[str]) -> Iterator[Point]:
    """Yield a point for each method: the flow's, the posterior mean, the others', and the bound."""
    for name in ways:
        names = ("solver", "steps", "sigma_s", "strength")
        made = {option: summary.methods[name].restored[option] for option in names}
        yield Point(
            name=name,
            kind="flow",
            **made,
            evaluations=evaluations(made["solver"], made["steps"], made["strength"]),
            values=summary.methods[name].values,
        )
    if POSTERIOR_MEAN in ends:
        values = summary.methods[POSTERIOR_MEAN].values
        yield Point(name=POSTERIOR_MEAN, kind="start", evaluations=0, values=values)
    for name, method in summary.methods.items():
        if name not in ways and name not in ends:
            yield Point(name=name, kind="other", values=method.values)
    if VAE in ends:
        yield Point(name=VAE, kind="bound", evaluations=0, values=summary.methods[VAE].values)


def evaluations(solver: Solver, steps: int, strength: float) -> int:
    """Return how often the network is evaluated for a picture."""
    return EVALUATIONS[solver] * steps_taken(steps, strength)


def write(folder: AnyPath, points: Sequence[Point]) -> None:
    """Write the points and the page."""
    values = {"version": VERSION, "points": [asdict(point) for point in points]}
    paths.write_bytes(folder / POINTS, pretty_json(values))
    paths.write_bytes(folder / PAGE, build(points).encode())
    sys.stdout.write(f"{folder / PAGE}\n")
