"""Whether the validations of runs measure the same: refused otherwise, with what differs.

A run records what its validation depends on besides the network (`trainers.loop.task.Task.facts`).
Runs of before have the metrics of the LQ and HQ pictures, which no network changes: equal ones tell
equal pictures, degradations and formulas.
"""

import math
from collections.abc import Iterator, Sequence

from infra.errors import UserError
from models.metrics.catalog import METRICS
from pipelines.evaluate.convergence.records import VALIDATION, RunRecord

RECORDED = "validation."
SET = "validation.set"
ALWAYS = ("ema.decays", "ema.warmup", "sampling_steps")  # settings of every version
REFERENCES = ("val/psnr_lq", "val/brisque_lq", "val/brisque_hq")  # formulas of pictures alone
TOLERANCE = 1e-4  # relative, of a reference: pictures differ by more, machines by less
DIGEST = 64  # digits


def metrics_of(records: Sequence[RunRecord], asked: Sequence[str]) -> list[str]:
    """Return the metrics to compare: those asked for, or all that every run has.

    Raises:
        UserError: a run lacks one that was asked for, or the runs have none in common.
    """
    for name in asked:
        for record in records:
            if not _has(record, name):
                has = ", ".join(one for one in METRICS if _has(record, one)) or "none"
                raise UserError(
                    f"{record.source}: its validations have no {name}; of the catalogue they have "
                    f"{has}. Choose a --metric that all runs have"
                )
    found = [name for name in METRICS if all(_has(record, name) for record in records)]
    if not found:
        raise UserError(
            "the runs have no metric of their validations in common: "
            + "; ".join(
                f"{record.source} has {', '.join(n for n in METRICS if _has(record, n)) or 'none'}"
                for record in records
            )
        )
    return [*asked] or found


def _has(record: RunRecord, metric: str) -> bool:
    return any(map(math.isfinite, record.points.get(VALIDATION + metric, {}).values()))


def facts(record: RunRecord, metrics: Sequence[str]) -> dict[str, str | float]:
    """Return what a run recorded of that which values of these metrics depend on."""
    judged = {f"{RECORDED}metrics.{name}" for name in metrics}
    settings = {
        name: value
        for name, value in record.params.items()
        if name in ALWAYS or name in judged or (name.startswith(RECORDED) and not _is_metric(name))
    }
    references = {
        name: next(iter(record.points[name].values()))
        for name in REFERENCES
        if name in record.points
    }
    return {**settings, **references}


def _is_metric(name: str) -> bool:
    return name.startswith(f"{RECORDED}metrics.")


def refuse_incomparable(records: Sequence[RunRecord], metrics: Sequence[str]) -> None:
    """Refuse runs whose values of these metrics do not measure the same.

    Raises:
        UserError: names the two runs and everything in which they differ, with both values.
    """
    first = records[0]
    for record in records:
        known = facts(record, metrics)
        changed = [f"{name} {record.changed[name]}" for name in known if name in record.changed]
        if changed:
            raise UserError(
                f"{record.source}: its validations cannot be compared with each other, for the run "
                f"was resumed with another {'; '.join(changed)}"
            )
    for other in records[1:]:
        found = [*_differences(first, other, metrics)]
        if found:
            raise UserError(
                f"{first.source} and {other.source} were not validated alike, so that their values "
                f"cannot be compared: {'; '.join(found)}. Evaluate checkpoints of both on the same "
                "pictures by python -m pipelines.evaluate instead"
            )


def _differences(one: RunRecord, other: RunRecord, metrics: Sequence[str]) -> Iterator[str]:
    mine, theirs = facts(one, metrics), facts(other, metrics)
    shared = [name for name in mine if name in theirs]
    for name in shared:
        if not _equal(mine[name], theirs[name]):
            yield f"{name} is {_short(mine[name])} and {_short(theirs[name])}"
    if not {SET, *REFERENCES} & {*shared}:
        yield "nothing that both recorded tells which pictures they were validated on"


def _equal(one: str | float, other: str | float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE) or (
            math.isnan(one) and math.isnan(other)
        )
    return one == other


def _short(value: str | float) -> str:
    """Write a value; of a digest its first digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(word[:12] if len(word) == DIGEST else word for word in value.split(" "))


def partly_recorded(records: Sequence[RunRecord]) -> list[str]:
    """Name the runs of a version that did not record yet what their validations depend on."""
    return [record.source for record in records if SET not in record.params]
