"""The photographs that wait, the one that is being restored, and results for a while.

Everything is in memory, and every amount of it is bounded. One thread restores, in the order in
which photographs came. A photograph is dropped when its job ends; its result is forgotten after
some minutes, or earlier where the results of all jobs take too many bytes.
"""

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from infra.errors import UserError
from pipelines.demo.config import DemoConfig
from pipelines.demo.options import Options

State = Literal["waiting", "running", "done", "refused", "failed"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a photograph."""

    files: Mapping[str, bytes]
    """PNG and JSON files by name."""
    summary: Mapping[str, Any]
    """What the page says of them, as JSON values."""


class Restoring(Protocol):
    """The model at work."""

    def __call__(
        self, photograph: bytes, options: Options, advance: Callable[[float], None]
    ) -> Result:
        """Restore a photograph.

        Args:
            photograph: an encoded file, as it was sent.
            options: how.
            advance: to be called with the share that is done, from 0 to 1.

        Raises:
            UserError: the photograph or the options cannot be used; the message says why.
        """


class QueueFull(Exception):  # noqa: N818  (an outcome, not a fault)
    """All places are taken."""


@dataclass(slots=True, eq=False)
class Job:
    """A photograph on its way."""

    photograph: bytes
    options: Options
    name: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    """Nobody can guess it, so that nobody sees the pictures of others."""
    state: State = "waiting"
    progress: float = 0.0
    """The share of the restoration that is done, from 0 to 1."""
    seconds: float = 0.0
    """That the restoration took."""
    error: str = ""
    """Why there is no result, as a sentence."""
    result: Result | None = None
    ended: float | None = None
    """When it ended, by the queue's clock."""

    @property
    def bytes(self) -> int:
        """The size of its result."""
        return sum(map(len, self.result.files.values())) if self.result else 0


class JobQueue:
    """Photographs in the order in which they came, and the thread that restores them.

    Args:
        restore: the model.
        config: how many photographs may wait or be on their way to here, and how much of results
            is kept how long; the newest result always is.
        clock: a clock that never goes back, in seconds.
    """

    def __init__(
        self,
        restore: Restoring,
        config: DemoConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._restore, self._clock = restore, clock
        self._places = config.places
        self._keep_seconds, self._keep_bytes = 60 * config.keep_minutes, 1e6 * config.keep_mb
        self._reserved = 0
        self._waiting: deque[Job] = deque()
        self._jobs: dict[str, Job] = {}  # in the order in which they came, and so will end
        self._is_closed = False
        self._changed = threading.Condition()
        # A daemon: a network in the middle of its work cannot be told to stop, and need not be.
        self._thread = threading.Thread(target=self._work, name="restore", daemon=True)

    def start(self) -> None:
        """Begin to restore."""
        self._thread.start()

    def close(self) -> None:
        """Restore nothing more, once the present photograph is done."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Keep a place free while a photograph is on its way to here.

        Raises:
            QueueFull: there is none.
        """
        with self._changed:
            if len(self._waiting) + self._reserved >= self._places:
                raise QueueFull
            self._reserved += 1
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= 1

    def submit(self, photograph: bytes, options: Options) -> Job:
        """Put a photograph at the end, inside of `reserved`."""
        job = Job(photograph, options)
        with self._changed:
            self._jobs[job.name] = job
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def find(self, name: str) -> Job | None:
        """Return a job; None if there is none, or no more."""
        with self._changed:
            self._forget_old()
            return self._jobs.get(name)

    def before(self, job: Job) -> int:
        """Count the photographs that are restored before this one, the present one included."""
        with self._changed:
            if job not in self._waiting:
                return 0
            is_busy = any(other.state == "running" for other in self._jobs.values())
            return self._waiting.index(job) + is_busy

    def forget(self, name: str) -> None:
        """Drop a job: its photograph if it waits, its result if it has one or when it has."""
        with self._changed:
            job = self._jobs.pop(name, None)
            if job is not None and job in self._waiting:
                self._waiting.remove(job)

    def _work(self) -> None:
        while self._did_one():
            pass

    def _did_one(self) -> bool:
        """Do the next job, of which no reference is left here; False when the queue is closed."""
        job = self._next()
        if job is not None:
            self._do(job)
        return job is not None

    def _next(self) -> Job | None:
        """Wait for a photograph; None when the queue is closed."""
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait(self._forget_old())
            if self._is_closed:
                return None
            job = self._waiting.popleft()
            job.state = "running"
            return job

    def _do(self, job: Job) -> None:
        start = time.perf_counter()
        result: Result | None = None
        state: State = "done"
        error = ""

        def advance(share: float) -> None:
            job.progress = share

        try:
            result = self._restore(job.photograph, job.options, advance)
        except UserError as refusal:
            state, error = "refused", str(refusal)
        except Exception as fault:
            log.exception("a restoration failed")
            state = "failed"
            error = f"the program failed ({type(fault).__name__}: {fault}); its terminal says where"
        with self._changed:
            job.photograph = b""
            job.result, job.error, job.state = result, error, state
            job.seconds = time.perf_counter() - start
            job.ended = self._clock()
            self._forget_old()

    def _forget_old(self) -> float | None:
        """Forget what is too old or too much; returns the seconds until there is more to forget."""
        ended = [job for job in self._jobs.values() if job.ended is not None]
        size = sum(job.bytes for job in ended)
        for number, job in enumerate(ended):
            assert job.ended is not None
            left = job.ended + self._keep_seconds - self._clock()
            is_newest = number == len(ended) - 1
            if left > 0 and (size <= self._keep_bytes or is_newest):
                return left
            size -= job.bytes
            del self._jobs[job.name]
        return None
