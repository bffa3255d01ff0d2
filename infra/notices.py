"""What a long job is told from outside, for programs whose ranks must agree before they act.

    with Notices() as notices:
        while not done:
            step()
            end, save = notices.take()      # then agree with the other ranks, and act

SIGTERM   a scheduler's notice: save and end
SIGHUP    the terminal is gone: save and end; nohup's choice to ignore it is kept
SIGINT    Ctrl-C: save and end; a second one, more than a second after the first, ends at once
SIGUSR1   save and go on, or save and end, by choice

A launcher that is gone means: save and end. DeepSpeed's outer process dies of SIGTERM and tells
nobody, so each rank looks whether the launchers that it descends from still live.
"""

import contextlib
import itertools
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

from infra.distributed import rank
from infra.termination import TERMINATED

OnUsr1 = Literal["save", "end"]
LAUNCHERS = ("deepspeed", "torchrun")  # programs by name
LAUNCHER_MODULES = ("deepspeed.launcher.", "torch.distributed.")
AGAIN = 1.0  # seconds: two SIGINT nearer than this are one Ctrl-C that came by two ways
INTERRUPTED = b"Ctrl-C: the run saves and ends; press it again to end at once, without a save\n"


class Notices:
    """Take note of signals inside a ``with`` block, and of launchers that ended.

    Args:
        on_usr1: what SIGUSR1 asks for.

    Attributes:
        reason: what told this process to end; empty if nothing did.
    """

    def __init__(self, on_usr1: OnUsr1 = "save") -> None:
        self.reason = ""
        self._save = False
        self._interrupted: float | None = None
        self._on_usr1 = on_usr1
        self._previous: dict[int, Any] = {}
        self._launchers = _launchers()

    def __enter__(self) -> Self:
        """Begin; outside the main thread, signals are left alone."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
                previous = signal.getsignal(number)
                is_ignored = previous is signal.SIG_IGN and number != signal.SIGTERM
                if not is_ignored:  # by nohup, or by a shell for what runs in its background
                    self._previous[number] = previous
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the handlers that were there, unless someone has put another in our place."""
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, previous)

    @property
    def code(self) -> int:
        """The exit code of a program that was told to end: 130 by Ctrl-C, else 143."""
        return TERMINATED if self._interrupted is None else 128 + signal.SIGINT

    def take(self) -> tuple[bool, bool]:
        """Tell whether this process was told to end, and whether to save since the last call."""
        if not self.reason and any(_parent(pid) != parent for pid, parent in self._launchers):
            self.reason = "the end of its launcher"
        save, self._save = self._save, False
        return bool(self.reason), save

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1 and self._on_usr1 == "save":
            self._save = True
            return
        self.reason = self.reason or signal.Signals(number).name
        if number == signal.SIGINT:
            self._interrupt()

    def _interrupt(self) -> None:
        if self._interrupted is None:
            self._interrupted = time.monotonic()
            if rank() == 0:  # now, not at the end of a long step; the file object may be in use
                with contextlib.suppress(OSError):
                    os.write(2, INTERRUPTED)
        elif time.monotonic() - self._interrupted > AGAIN:
            raise KeyboardInterrupt


def _launchers() -> list[tuple[int, int]]:
    """List this process and its launchers but the outermost, each with its parent's number."""
    found: list[tuple[int, int]] = []
    child, parent = os.getpid(), _parent(os.getpid())
    while "RANK" in os.environ and parent is not None and _is_launcher(parent):
        found.append((child, parent))
        child, parent = parent, _parent(parent)
    return found


def _is_launcher(pid: int) -> bool:
    """Tell whether a process is a launcher's Python, and not, say, a shell that began one."""
    program, *arguments = _read(pid, "cmdline").decode(errors="replace").split("\0")
    options = list(itertools.takewhile(lambda argument: argument.startswith("-"), arguments))
    (what,) = arguments[len(options) :][:1] or [""]
    if not Path(program).name.startswith("python"):
        return False
    return what.startswith(LAUNCHER_MODULES) if "-m" in options else Path(what).name in LAUNCHERS


def _parent(pid: int) -> int | None:
    """Return the number of a process's parent; None if the process is gone."""
    if pid == os.getpid():
        return os.getppid()
    status = _read(pid, "stat").rpartition(b")")[2].split()  # the name before may hold brackets
    return int(status[1]) if status else None


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended, or belongs to someone else
        return b""
