"""What the steps between two lines of the log were like.

train/*                    losses, gradient norm and learning rate
speed/samples_per_second   of all ranks together, as step_seconds: with all that steps wait for
speed/step_seconds
speed/data_share           of this rank's time, waiting for data
speed/tflops_per_second    counted operations of a step over its time, of all ranks together
speed/share_of_peak        of what the devices can do at this precision, where that is known
speed/peak_memory_gb       the most that a rank has held since its start, see `cost.peak_memory_gb`
"""

import time
from collections.abc import Mapping


class StepAverages:
    """What was measured since the last line of the log."""

    def __init__(self, step: int) -> None:
        self.first = step
        self.started = time.perf_counter()
        self.waited = 0.0
        self.steps = 0
        self.rate = 0.0
        self.totals: dict[str, float] = {}

    def add(self, values: Mapping[str, float], rate: float) -> None:
        """Add a step's losses."""
        self.steps += 1
        self.rate = rate
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + value

    def metrics(self, batch: int, flops: int, peak: float | None) -> dict[str, float]:
        """Return averages per step, and speeds: with all that steps wait for, such as data.

        Args:
            batch: samples of a step.
            flops: of a step, all ranks together, as a task counts them: forward and backward.
                What activation checkpointing computes twice counts once.
            peak: TFLOP/s of all ranks' devices together, whose share is then told; None: unknown.
        """
        seconds = time.perf_counter() - self.started
        tflops = flops * self.steps / seconds / 1e12
        return {
            **{f"train/{name}": total / self.steps for name, total in self.totals.items()},
            "train/learning_rate": self.rate,
            "speed/samples_per_second": batch * self.steps / seconds,
            "speed/step_seconds": seconds / self.steps,
            "speed/data_share": self.waited / seconds,
            "speed/tflops_per_second": tflops,
            **({} if peak is None else {"speed/share_of_peak": tflops / peak}),
        }


def clock(seconds: float) -> str:
    """Write a duration as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
