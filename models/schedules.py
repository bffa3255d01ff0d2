"""Learning rates as functions of the step, so that resuming needs nothing but the step."""

import math

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from models.configuration import STRICT


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class Schedule:
    """A linear warm-up, then half a cosine down to a floor, or constant."""

    peak: PositiveFloat
    """Learning rate after the warm-up."""
    warmup_from: NonNegativeFloat = 0.0
    """Learning rate at step 0, if there is a warm-up."""
    warmup_steps: NonNegativeInt = 0
    """Steps from ``warmup_from`` to ``peak``."""
    floor: NonNegativeFloat = 0.0
    """Learning rate at the end of the cosine and behind it."""
    cosine_steps: PositiveInt | None = None
    """Steps of the cosine, counted from the end of the warm-up; None keeps ``peak``."""

    def __post_init__(self) -> None:
        """Refuse what is no descent from a peak."""
        for name in ("warmup_from", "floor"):
            if getattr(self, name) > self.peak:
                raise ValueError(
                    f"{name}={getattr(self, name)}: give a value from 0 to peak={self.peak}"
                )


_SIM_VAE = {"peak": 1e-4, "warmup_from": 1e-5, "floor": 1e-6}
PRESETS: dict[str, Schedule] = {
    # 150,000 steps, the last of them at 1e-6, as the paper says (Sec. 6.1)
    "sim-vae": Schedule(**_SIM_VAE, warmup_steps=500, cosine_steps=149_500),
    # the authors' file: a cosine of 200,000 steps left after 150,000, at 1.58e-5
    "sim-vae-authors": Schedule(**_SIM_VAE, warmup_steps=500, cosine_steps=200_000),
    "flow": Schedule(peak=5e-4),  # fixed (Sec. 6.1)
    "predictor": Schedule(peak=5e-5, floor=5e-6, cosine_steps=300_000),  # DifFace's SwinIR
}


def preset(name: str) -> Schedule:
    """Look a preset up.

    Raises:
        ValueError: an unknown name, with the known ones.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown schedule {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def learning_rate(step: int, schedule: Schedule) -> float:
    """Return the learning rate of the update from ``step`` to ``step + 1``; steps count from 0.

    Raises:
        ValueError: a negative step.
    """
    if step < 0:
        raise ValueError(f"step={step}: steps count from 0")
    peak, floor = schedule.peak, schedule.floor
    if step < schedule.warmup_steps:
        fraction = step / schedule.warmup_steps
        return schedule.warmup_from + fraction * (peak - schedule.warmup_from)
    if schedule.cosine_steps is None:
        return peak
    fraction = min(1.0, (step - schedule.warmup_steps) / schedule.cosine_steps)
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * fraction))
