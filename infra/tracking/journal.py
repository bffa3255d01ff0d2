"""A local journal: records and files on their way to somewhere slow, safe from a kill meanwhile.

A folder per journal: ``records.jsonl``, only ever appended to; ``files/``, each removed when it has
arrived; ``run.json`` of the writer, ``sent.json`` of the sender, ``lock``. An append is one write
to the operating system: it survives the death of the process at any moment, not of the machine.
"""

import fcntl
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.errors import UsageError, UserError
from infra.storage import TEMPORARY_SUFFIX, AtomicFile, remove_tree, write_bytes

_HELD: set[Path] = set()  # by this process: POSIX locks do not keep out their own process


class Journal:
    """One journal, held by this process until :meth:`close`.

    Attributes:
        folder: where it lives.
        token: the folder's name, by which the journal is known.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self.token = folder.name
        self._lock_fd = lock
        self._records = folder / "records.jsonl"
        self._fd = os.open(self._records, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
        self._drop_torn_tail()
        self._unwritten = b""
        # Reentrant: a signal handler may record something while the main thread is recording.
        self._guard = threading.RLock()
        self._files_guard = threading.Lock()

    @classmethod
    def hold(cls, folder: Path) -> "Journal | None":
        """Open or create the journal in ``folder``; None while someone holds it."""
        folder = folder.absolute()
        if folder in _HELD:  # opening and closing the lock file again would let go of our lock
            return None
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            # A POSIX lock, not flock: data-loading workers forked from a killed trainer would keep
            # that one, and the resumed trainer could not have its own journal back.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        _HELD.add(folder)
        return cls(folder, lock)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record.

        Raises:
            OSError: the disk is full or gone; the record stays in memory for the next append.
        """
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self._guard:
            self._unwritten += line
            self.flush()

    def flush(self) -> None:
        """Write what earlier appends could not; raises OSError as they did."""
        with self._guard:
            while self._unwritten:
                written = os.write(self._fd, self._unwritten)
                self._unwritten = self._unwritten[written:]

    @property
    def unwritten(self) -> int:
        """Count the records that the disk has refused so far."""
        return self._unwritten.count(b"\n")

    @property
    def size(self) -> int:
        """Return the length of the record file in bytes."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield each whole record from a byte offset on, with the offset after it.

        A line that is not JSON (a damaged disk) is yielded as an empty record.
        """
        with self._records.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    record = json.loads(line)
                except ValueError:
                    record = {}
                yield record, offset

    def put(self, name: str, data: bytes) -> None:
        """Keep a file's bytes under a relative name; the same name again replaces it."""
        with self._files_guard:
            write_bytes(self.path(name), data)

    def copy(self, source: Path, name: str) -> tuple[int, str]:
        """Keep a copy of a file under a relative name; the same name again replaces it.

        Returns:
            Length in bytes, and SHA-256 in hex.
        """
        with self._files_guard, source.open("rb") as file, AtomicFile(self.path(name)) as kept:
            shutil.copyfileobj(file, kept, 1 << 20)
        return kept.bytes_written, kept.sha256.hexdigest()

    def files(self, folder: str = "") -> list[str]:
        """List the names of the files that are kept (in a folder and below), sorted."""
        root = self.folder / "files"
        return sorted(
            str(path.relative_to(root))
            for path in (root / folder).rglob("*")
            if path.is_file() and not path.name.endswith(TEMPORARY_SUFFIX)
        )

    def path(self, name: str) -> Path:
        """Return where a kept file lies."""
        return self.folder / "files" / name

    def discard(self, name: str, version: os.stat_result) -> None:
        """Remove a file that has arrived, unless another took its name since ``version``."""
        with self._files_guard:
            if self.path(name).stat().st_ino == version.st_ino:
                self.path(name).unlink()

    def load(self, document: str) -> dict[str, Any]:
        """Read a small JSON document of the journal; empty when there is none."""
        path = self.folder / document
        value: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return value

    def save(self, document: str, value: Mapping[str, Any]) -> None:
        """Write a small JSON document of the journal, atomically."""
        write_bytes(self.folder / document, json.dumps(value).encode())

    def close(self) -> None:
        """Let the journal go; another process may hold it now."""
        os.close(self._fd)
        os.close(self._lock_fd)
        _HELD.discard(self.folder)

    def remove(self) -> None:
        """Delete the journal and all in it, then let it go."""
        remove_tree(self.folder)
        self.close()

    def _drop_torn_tail(self) -> None:
        """Cut a last line that a dying process or a full disk left unfinished."""
        size = whole = self.size
        while whole > 0:
            start = max(0, whole - 65536)
            end = os.pread(self._fd, whole - start, start).rfind(b"\n")
            if end >= 0:
                whole = start + end + 1
                break
            whole = start
        if whole < size:
            os.ftruncate(self._fd, whole)


def take(folder: Path, identity: Mapping[str, Any], token: str | None) -> Journal:
    """Hold the journal called ``token``, or the latest unfinished one like this, or a new one.

    Args:
        folder: the folder of all journals.
        identity: entries of its ``run.json`` by which a journal is taken up again.
        token: name of the one wanted, or None.

    Raises:
        UsageError: ``token`` cannot be a folder's name.
        UserError: another process holds the journal asked for.
    """
    if token is not None:
        if not re.fullmatch(r"[\w-]+", token):
            raise UsageError(f"run {token!r}: the name of a run has letters, digits, - and _ only")
        journal = Journal.hold(folder / token)
        if journal is None:
            raise UserError(f"run {token} is being written by another process; wait for it to end")
        return journal
    for known in _known(folder):
        if identity.items() <= known.items() and known["status"] != "FINISHED":
            journal = Journal.hold(folder / known["token"])
            if journal is not None:
                return journal
    fresh = Journal.hold(folder / uuid.uuid4().hex)
    assert fresh is not None, "nobody else knows a name that was made up just now"
    return fresh


def others(folder: Path, uri: str) -> list[Journal]:
    """Hold every journal in ``folder`` that is meant for the store ``uri`` and held by no one."""
    held = [
        Journal.hold(folder / known["token"]) for known in _known(folder) if known["uri"] == uri
    ]
    return [journal for journal in held if journal is not None]


def _known(folder: Path) -> list[dict[str, Any]]:
    """Read what the writers said of the journals in ``folder``, the latest first."""
    documents = [
        {**json.loads(path.read_bytes()), "token": path.parent.name}
        for path in folder.glob("*/run.json")
    ]
    return sorted(documents, key=lambda document: -float(document["created"]))
