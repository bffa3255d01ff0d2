"""End a rank that hangs, with a message that names the option which says when."""

import faulthandler
import os
import sys
import threading
import time
from typing import Self

SPARE = 60.0  # seconds after which a hang is ended that lets no other thread of Python run


class Watchdog:
    """Ends the process if `arm` is not called again in time; all threads' traces are printed.

    It waits for nothing any more after its ``with`` block.

    DeepSpeed's own process groups do not have the time-out of `engine.join`, so that this is what
    ends a job in which one rank waits for another for ever.

    Args:
        minutes: until it ends the process.
    """

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._what = ""
        self._deadline: float | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disarm()

    def arm(self, what: str) -> None:
        """Begin to wait anew; ``what`` is what now has to end in time, such as "step 12"."""
        with self._changed:
            self._what, self._deadline = what, time.monotonic() + 60 * self._minutes
        if not self._thread.ident:
            self._thread.start()
        faulthandler.dump_traceback_later(60 * self._minutes + SPARE, exit=True)

    def disarm(self) -> None:
        """Wait for nothing more."""
        faulthandler.cancel_dump_traceback_later()
        with self._changed:
            self._deadline = None
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while self._deadline is not None:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    self._end()
                self._changed.wait(left)

    def _end(self) -> None:
        try:
            sys.stderr.write(
                f"error: {self._what} took longer than --timeout-minutes {self._minutes:g}. If it "
                "hangs, the traces below show where, on this rank; if it only takes long, give "
                "more minutes, and run the same command again: it resumes\n"
            )
            sys.stderr.flush()
            faulthandler.dump_traceback(all_threads=True)
        finally:  # also where the terminal is gone
            os._exit(1)
