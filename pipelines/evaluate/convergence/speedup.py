"""How many times less one group of runs spends than another to be as good.

A run comes to a level where its best value so far first reaches it. That lies between two
validations, a before it and b: with the best values q_a and q_b, and the costs c_a and c_b,

    log c = log c_a + (level - q_a) / (q_b - q_a) (log c_b - log c_a).

The speed-up is the ratio of the geometric means of the costs of two groups, the baseline's over the
other's. Its lowest and highest value take every crossing anywhere from c_a to c_b, and of each
group any seed. A level that a run has reached at its first validation after step 0 is crossed at an
unknown cost, and one that it never reaches at none: there is no ratio at either. If one group was
better at its first validation than the other ever was, there is a bound: it had spent at most what
it had then, and the other would have had to spend more than all that it did.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pipelines.evaluate.bootstrap import interval, resampled_means
from pipelines.evaluate.convergence.curves import Curve, Floats

LEVELS = 40
RESAMPLES = 1000
SEEDS = 3  # of each group, from which on they are resampled


class Crossing(NamedTuple):
    """What a run had spent when it came to a level."""

    at: float
    low: float
    """At the validation before."""
    high: float
    """At the validation that shows it."""


@dataclass(frozen=True, slots=True)
class SpeedUp:
    """A ratio of costs at a level of quality, the baseline's over the other group's."""

    level: float
    ratio: float
    low: float
    """The lowest that is possible, by any pair of seeds and between their validations."""
    high: float
    sampled: tuple[float, float] | None
    """The interval of 95 % of the ratio by the bootstrap over seeds; None with too few."""
    baseline: float
    """What the baseline had spent, the geometric mean of its seeds."""
    other: float


@dataclass(frozen=True, slots=True)
class Bound:
    """What is known of the speed-up at a level that one group had at first, the other never."""

    level: float
    ratio: float
    is_lowest: bool
    """Whether the speed-up is more than ``ratio``, for the other group was the better; or less."""
    baseline: float
    """What the baseline had spent at its last validation, or if it was the better at its first."""
    other: float


@dataclass(frozen=True, slots=True)
class Rising:
    """A curve turned so that more is better, without step 0 and what has no known cost."""

    costs: Floats
    best: Floats
    """Best value so far."""

    def crossing(self, level: float) -> Crossing:
        """Return where the best value first reaches a level above the first and up to the last."""
        index = int(np.searchsorted(self.best, level))
        before, after = self.best[index - 1], self.best[index]
        low, high = float(self.costs[index - 1]), float(self.costs[index])
        share = (level - before) / (after - before)
        return Crossing(low * (high / low) ** share, low, high)


def rising(curve: Curve, cost: str, *, higher_is_better: bool) -> Rising:
    """Turn a curve so that more is better."""
    costs = curve.costs[cost]
    is_used = (curve.steps > 0) & np.isfinite(costs)
    goodness = curve.values if higher_is_better else -curve.values
    return Rising(costs[is_used], np.maximum.accumulate(goodness[is_used]))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A group against the baseline, by one metric and one cost."""

    speedups: tuple[SpeedUp, ...]
    """At levels from the worst that can be compared to the best that all runs reach."""
    why_none: str = ""
    """Why there is none, in a sentence."""
    bound: Bound | None = None
    """What is known without one."""

    @property
    def headline(self) -> SpeedUp | None:
        """The speed-up at the best level that all runs reach."""
        return self.speedups[-1] if self.speedups else None


def compare(
    baseline: Sequence[Curve], other: Sequence[Curve], cost: str, *, higher_is_better: bool
) -> Comparison:
    """Compare what two groups spend on equal quality.

    Args:
        baseline: a curve for each seed.
        other: likewise.
        cost: one of `COSTS`.
        higher_is_better: direction of the metric.
    """
    mine, theirs = (
        [rising(one, cost, higher_is_better=higher_is_better) for one in some]
        for some in (baseline, other)
    )
    both = [*mine, *theirs]
    if not all(len(one.best) for one in both):
        return Comparison((), "a run has no validation whose cost is known")
    worst = max(float(one.best[0]) for one in both)
    best = min(float(one.best[-1]) for one in both)
    sign = 1 if higher_is_better else -1
    if best <= worst:
        why = (
            "no level was reached by all runs after their first validations: one was at "
            f"{sign * worst:.4g} at its first, and one never came beyond {sign * best:.4g}"
        )
        bound = _bound(mine, theirs)
        return Comparison((), why, bound and replace(bound, level=sign * bound.level))
    levels = np.linspace(worst, best, LEVELS + 1)[1:]
    found = _speedups(levels.tolist(), mine, theirs)
    return Comparison(tuple(replace(one, level=sign * one.level) for one in found))


def _bound(baseline: Sequence[Rising], other: Sequence[Rising]) -> Bound | None:
    """Return the bound, if all seeds of one group began better than any of the other ended."""
    for better, worse in ((other, baseline), (baseline, other)):
        level = float(min(one.best[0] for one in better))
        if max(one.best[-1] for one in worse) < level:
            least = float(min(one.costs[-1] for one in worse))
            most = float(max(one.costs[0] for one in better))
            is_lowest = better is other
            spent = (least, most) if is_lowest else (most, least)
            return Bound(level, spent[0] / spent[1], is_lowest, *spent)
    return None


def _speedups(
    levels: Sequence[float], baseline: Sequence[Rising], other: Sequence[Rising]
) -> Iterator[SpeedUp]:
    """Yield the speed-up at each of some levels that all runs cross."""
    mine, theirs = (
        [[one.crossing(level) for one in some] for level in levels] for some in (baseline, other)
    )
    a, b = (
        np.log([[found.at for found in at_level] for at_level in some]) for some in (mine, theirs)
    )
    sampled = _resampled(a, b) if min(len(baseline), len(other)) >= SEEDS else [None] * len(levels)
    logs = zip(a.mean(axis=1).tolist(), b.mean(axis=1).tolist(), strict=True)
    for level, ours, others, (x, y), ends in zip(levels, mine, theirs, logs, sampled, strict=True):
        yield SpeedUp(
            level=level,
            ratio=math.exp(x - y),
            low=min(one.low for one in ours) / max(one.high for one in others),
            high=max(one.high for one in ours) / min(one.low for one in others),
            sampled=ends,
            baseline=math.exp(x),
            other=math.exp(y),
        )


def _resampled(baseline: Floats, other: Floats) -> list[tuple[float, float]]:
    """Return the interval of the ratio at each level over resampled seeds.

    Args:
        baseline: logarithms of the costs, [levels, seeds].
        other: likewise.
    """
    means = [
        resampled_means(costs.T, RESAMPLES, seed) for seed, costs in enumerate((baseline, other))
    ]
    ends = [interval(column) for column in (means[0] - means[1]).T]
    return [(math.exp(low), math.exp(high)) for low, high in ends]
