"""SIGTERM as an orderly end: the scheduler's notice is remembered, and becomes an exception.

A program whose ranks must agree before they end goes by :mod:`infra.notices` instead.
"""

import signal
import threading
from types import FrameType
from typing import Any, Self

TERMINATED = 128 + signal.SIGTERM  # the exit code of a program that was told to end
# As shells count them; the last is what Ray's handler exits with.
KILLED_CODES = frozenset({TERMINATED, 128 + signal.SIGINT, signal.SIGTERM})


class Termination:
    """Notice SIGTERM inside a ``with`` block, instead of dying of it.

    A handler that is installed later takes the signal away from this one: call ``ray.init`` first,
    whose native handler would end the process on the spot. The handler that was there acts first;
    without one, the main thread raises ``SystemExit(143)``, so that every ``with`` block ends
    properly.

    Attributes:
        noticed: whether the signal came.
    """

    def __init__(self) -> None:
        self.noticed = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        """Begin; outside the main thread this does nothing."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGTERM)
            if self._previous is not signal.SIG_IGN:  # on purpose, by whoever started us
                signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the handler that was there, unless someone has put another in our place."""
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._previous)

    def status(self, error: BaseException | None) -> str:
        """Tell how a block ended that raised ``error``: FINISHED, FAILED or KILLED."""
        code = error.code if isinstance(error, SystemExit) else None
        if self.noticed or isinstance(error, KeyboardInterrupt) or code in KILLED_CODES:
            return "KILLED"
        is_end = error is None or (isinstance(error, SystemExit) and not code)
        return "FINISHED" if is_end else "FAILED"

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.noticed = True
        if callable(self._previous):
            self._previous(number, frame)
        else:
            raise SystemExit(TERMINATED)
