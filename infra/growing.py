"""A file that grows: it is appended to on this machine's disk, and sent to where it belongs.

An object of a bucket cannot be appended to. So a file that belongs into a bucket is written in its
twin (`infra.paths.local_twin`) and sent whole, at the beginning, now and then, and at the end. On
another machine, whoever goes on with it begins with what was sent last.
"""

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from infra import storage
from infra.errors import UserError
from infra.folders.bucket_path import BucketPath
from infra.folders.contract import Unavailable
from infra.paths import AnyPath, local_twin, read_if_there
from infra.storage import explained

EVERY = 30.0  # seconds between two sendings, at least
SHARE = 20.0  # times as long as the last sending took, at least: 5 % of the time goes there at most


class GrowingFile:
    """A file that one process appends to; on a disk it is nothing but its path.

    Args:
        path: where it belongs.
    """

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self.local = local_twin(path)
        """The file to append to."""
        self._check: Callable[[], None] = lambda: None
        self._due = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the file for this process alone, and bring what another machine has sent.

        At the end of the block the file is sent.

        Raises:
            UserError: another process holds it, or it cannot be read or sent.
        """
        if isinstance(self.path, Path):  # whoever opens it can lock it
            yield
            return
        from infra.s3.lease import held

        records = self.path.with_name(f".{self.path.name}.lock").folder
        with held(records, f"--output {self.path}") as lease:
            self._check = lease.check
            self._bring(self.path)
            try:
                yield
            except BaseException:
                self.send_if_possible()
                raise
            try:
                self._send(self.path)
            except Unavailable as error:
                raise UserError(f"{error}. {self._kept()}") from error.__cause__

    def send_now_and_then(self) -> None:
        """Send the file, unless that was done a short time ago or the store is away just now.

        Raises:
            UserError: another process has taken the file over.
        """
        if time.monotonic() >= self._due:
            self.send_if_possible()

    def send_if_possible(self) -> None:
        """Send the file; if the store is away, say so and go on.

        Raises:
            UserError: another process has taken the file over.
        """
        if isinstance(self.path, BucketPath):
            try:
                self._send(self.path)
            except Unavailable as error:
                sys.stderr.write(f"{error}. {self._kept()}\n")
                self._due = time.monotonic() + EVERY

    def _kept(self) -> str:
        return f"What was not sent is kept in {self.local}; the next run on this machine sends it"

    def _bring(self, path: BucketPath) -> None:
        """Take what is in the bucket, unless this machine has more; nothing there is a new file."""
        theirs = read_if_there(path)
        if theirs is None:
            self.local.unlink(missing_ok=True)
        elif not (self.local.is_file() and self.local.read_bytes().startswith(theirs)):
            storage.write_bytes(self.local, theirs)

    def _send(self, path: BucketPath) -> None:
        if not self.local.exists():
            return
        start = time.monotonic()
        self._check()
        path.parent.folder.put_file(path.name, self.local, storage.sha256(self.local))
        now = time.monotonic()
        self._due = now + max(EVERY, SHARE * (now - start))


class GrowingLines(ABC):
    """A growing file of JSON lines, open for appending inside a `with` block.

    A line that a kill left unfinished is cut off.

    Args:
        path: the file; it is made if it is not there.
    """

    def __init__(self, path: AnyPath) -> None:
        self._growing = GrowingFile(path)

    def __enter__(self) -> Self:
        """Take the file for this process, and read what it holds.

        Raises:
            UserError: another process writes it, it cannot be written, or a line is damaged.
        """
        with ExitStack() as opened:
            opened.enter_context(self._growing.held())
            local = self._growing.local
            try:
                local.parent.mkdir(parents=True, exist_ok=True)
                self._file = opened.enter_context(local.open("a+b"))
            except OSError as error:
                raise explained(error, local) from error
            self._file.seek(0)
            lines = complete_lines(self._file.read())
            self.take(lines, str(local))
            self._file.truncate(sum(map(len, lines)))
            self._open = opened.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    @abstractmethod
    def take(self, lines: Sequence[bytes], where: str) -> None:
        """Read the lines that the file held.

        Args:
            lines: each with its end.
            where: the file, for messages.

        Raises:
            UserError: a line is damaged.
        """

    def write(self, values: Iterable[object]) -> None:
        """Add a line for each JSON value; they are on this machine's disk on return."""
        self._file.write(b"".join(json.dumps(value).encode() + b"\n" for value in values))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._growing.send_now_and_then()


def complete_lines(text: bytes) -> list[bytes]:
    """Return the lines of a file that a kill may have ended in mid-line, without such a line."""
    return text[: text.rfind(b"\n") + 1].splitlines(keepends=True)
