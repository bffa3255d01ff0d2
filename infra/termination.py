"""SIGTERM as an orderly end: the scheduler's notice becomes an exception, and is remembered."""

import signal
import threading
from types import FrameType
from typing import Any

# As shells count them; the last is what Ray's handler exits with.
KILLED_CODES = frozenset({128 + signal.SIGTERM, 128 + signal.SIGINT, signal.SIGTERM})


class Termination:
    """Watch for SIGTERM while another handler, if there is one, does what it did before.

    Without another handler the main thread raises ``SystemExit(143)``, so that every ``with`` block
    ends properly. A handler that is installed later takes the signal away from this one: call
    ``ray.init`` first, whose native handler would end the process on the spot.

    Attributes:
        noticed: whether the signal came.
    """

    def __init__(self) -> None:
        self.noticed = False
        self._previous: Any = None

    def watch(self) -> None:
        """Begin; does nothing outside the main thread, or where SIGTERM is ignored on purpose."""
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            self._previous = signal.signal(signal.SIGTERM, self._handle)

    def unwatch(self) -> None:
        """Restore the handler that was there, unless someone has put another in our place."""
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._previous)

    def status(self, error: BaseException | None) -> str:
        """Tell how a block ended that raised ``error``: FINISHED, FAILED or KILLED."""
        code = error.code if isinstance(error, SystemExit) else None
        if self.noticed or isinstance(error, KeyboardInterrupt) or code in KILLED_CODES:
            return "KILLED"
        return (
            "FINISHED"
            if error is None or (isinstance(error, SystemExit) and not code)
            else "FAILED"
        )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.noticed = True
        if callable(self._previous):
            self._previous(number, frame)
        else:
            raise SystemExit(128 + number)
