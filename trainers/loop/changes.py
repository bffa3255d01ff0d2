"""The learning rate and the clipping of a step, with the changes that a user made on the way.

Both are functions of the step and the configuration, so that a resumed run equals an unbroken one.
"""

from collections.abc import Sequence
from dataclasses import replace

from infra.errors import UsageError
from models.schedules import Schedule, learning_rate
from trainers.loop.config import TrainerConfig


def rate_at(step: int, config: TrainerConfig) -> float:
    """Return the learning rate of the update from ``step`` to ``step + 1``."""
    return learning_rate(step, _schedule_at(step, config))


def peak_at(step: int, config: TrainerConfig) -> float:
    """Return the schedule's peak as it is at a step."""
    return _value_at(step, config.changes.peak_from, config.schedule.peak)


def clipping_at(step: int, config: TrainerConfig) -> float:
    """Return the largest gradient norm of that update; 0 clips nothing."""
    return _value_at(step, config.changes.clipping_from, config.engine.gradient_clipping)


def check_changes(config: TrainerConfig) -> None:
    """Refuse a peak that the schedule cannot have.

    Raises:
        UsageError: names the peak, and what it contradicts.
    """
    for step, peak in config.changes.peak_from:
        try:
            _schedule_at(step, config)
        except ValueError as error:
            lowest = max(config.schedule.floor, config.schedule.warmup_from)
            raise UsageError(
                f"--peak-from {step} {peak}: below the schedule's floor or the start of its "
                f"warm-up; give a peak of at least {lowest}"
            ) from error


def _schedule_at(step: int, config: TrainerConfig) -> Schedule:
    return replace(config.schedule, peak=peak_at(step, config))


def _value_at(step: int, changes: Sequence[tuple[int, float]], first: float) -> float:
    """Return the value of the last change up to ``step``."""
    return next((value for begin, value in reversed(changes) if begin <= step), first)
