"""Another machine: a forked process that shares with this one the inputs and a bucket, no disk."""

import fnmatch
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.in_a_bucket import move_to_another_machine


def done(work: Callable[[], object], folder: Path, event: str = "") -> int:
    """Do something with a home, caches, temporary and working folders that hold nothing yet.

    Args:
        work: what is done.
        folder: where the machine's disk is made.
        event: before which request the process kills itself, as in `2 PUT *.tar *`: the second
            whose first line matches; "" lets it end.

    Returns:
        The signal that it died of as a negative number, or its exit code: 1 for an exception, which
        `folder`/log has.
    """
    folder.mkdir(parents=True)
    pid = os.fork()
    if not pid:
        try:
            _move_to(folder)
            if event:
                _kill_before(event)
            work()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _move_to(folder: Path) -> None:
    move_to_another_machine(folder / "disk")
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))


def _kill_before(event: str) -> None:
    """Kill this process just before it sends a request."""
    number, _, pattern = event.partition(" ")
    matches = itertools.count(1)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "http.client.send" and isinstance(arguments[1], bytes):
            line = arguments[1].partition(b"\r\n")[0].decode(errors="replace")
            if fnmatch.fnmatchcase(line, pattern) and next(matches) == int(number):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
