"""Processes that a program starts for itself: they end with it, and leave signals to it.

    with signals_held():
        multiprocessing.Process(target=work).start()     # work() begins with live_with_parent()

A scheduler or a terminal signals whole groups of processes, and DeepSpeed's launcher all that
descend from a rank. Children that died of it would take the batches with them that their parent
needs to finish its step. And a parent that is killed cannot end its children.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from typing import Any

STOPPING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1})


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold the signals that stop a program; processes begun in the block never get them.

    This thread gets those that came meanwhile as the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_helpers() -> None:
    """Start the two processes by which Python starts others, so that they never get signals."""
    with signals_held():
        resource_tracker.ensure_running()  # which lets through some of the signals again
    with signals_held():
        forkserver.ensure_running()


def live_with_parent() -> None:
    """End this process as soon as the one that asked for it has ended; called in a child.

    The parent of a process that a fork server started is, to the operating system, that server,
    which lives as long as its children: so it is the pipe to the real parent that tells. A parent
    that exits while something still refers to its workers ends them by SIGTERM and waits for them:
    that signal is obeyed, by its sender.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        for target, argument in ((_end_after, parent), (_end_if_told_by, parent.pid)):
            threading.Thread(target=target, args=(argument,), name="parent", daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _end_if_told_by(pid: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != pid:
        pass
    os._exit(1)
