"""SIGTERM during training: a flag that all ranks agree on after the step, then save and end."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

STOPPED = 128 + signal.SIGTERM  # the exit code of a run that was told to end, and saved


class Stop:
    """Notice SIGTERM instead of dying of it.

    The launchers end rank after rank and wait in between, so no rank may act alone: the loop adds
    the flag up over all of them.

    Attributes:
        asked: whether the signal came.
    """

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
