"""What runs record on the local disk: a log, and copies of the files that wait for the store.

FOLDER/log.jsonl                   the log of the folder's present run
FOLDER/.tracking/TOKEN/sent.json   how much of a run's log has arrived, and in which store
FOLDER/.tracking/TOKEN/files/      copies, each deleted once it has arrived
FOLDER/.tracking/TOKEN/log.jsonl   the log of a run that another one followed in the folder
FOLDER/.tracking/lock              held by the process that records or sends

The log is the one durable record. Each line is one write to the operating system: it survives the
death of the process at any moment, not that of the machine. Numbers are ``{"step": n, "time": ms,
name: value, ...}``; those of the machine have ``second`` for ``step``, those of the whole run have
neither. Any other line has one key: ``start``, ``params``, ``tags``, ``dataset``, ``model``,
``end``. A job that resumes from an earlier step cuts what was logged of later ones; the log is then
sent again from its first line, which changes nothing in the store (:mod:`infra.tracking.store`).
"""

import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from infra.errors import UsageError
from infra.storage import TEMPORARY_SUFFIX, AtomicFile, move, write_bytes

LOG, STATE = "log.jsonl", ".tracking"
STARTED = {"uri", "experiment", "params", "run_id", "name", "tags", "token", "time"}  # of a start


class Resume(NamedTuple):
    """Where a job goes on, and where its run began."""

    token: str | None  # of the run, as a checkpoint keeps it
    step: int | None = None  # numbers of later steps are cut from the log; -1: of all; None: none
    # Tags of the run. "parent.run", the token of the run that it was forked from, makes it that
    # one's child in MLflow.
    origin: Mapping[str, str] = MappingProxyType({})


class Record:
    """One run's log and files, open until :meth:`close`.

    Args:
        log: path of the log.
        state: the run's own folder below ``.tracking``.
        rewind_to: the last step whose numbers stay in the log; None keeps all.
    """

    def __init__(self, log: Path, state: Path, rewind_to: int | None = None) -> None:
        self.log = log
        self._files, self._sent = state / "files", state / "sent.json"
        if log.exists():
            self._cut(rewind_to)
        self._fd = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
        self._unwritten = b""
        # Reentrant: a signal handler may record something while the main thread is recording.
        self._guard = threading.RLock()

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line.

        Raises:
            OSError: the disk is full or gone; the line stays in memory for the next append.
        """
        with self._guard:
            self._unwritten += json.dumps(line).encode() + b"\n"
            while self._unwritten:
                written = os.write(self._fd, self._unwritten)
                self._unwritten = self._unwritten[written:]

    @property
    def unwritten(self) -> int:
        """Count the lines that the disk has refused so far."""
        return self._unwritten.count(b"\n")

    def offset(self, uri: str) -> int:
        """Return how many bytes of the log the store ``uri`` has."""
        store, offset = self._sent_before()
        return offset if store == uri else 0

    def _sent_before(self) -> tuple[str, int]:
        """Read what `save_offset` wrote; what cannot be read counts as nothing sent.

        Sending everything again changes nothing in the store.
        """
        try:
            sent = json.loads(self._sent.read_bytes())
            return str(sent["uri"]), int(sent["offset"])
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            return "", 0

    def save_offset(self, uri: str, offset: int) -> None:
        """Remember, atomically, what :meth:`offset` returns."""
        write_bytes(self._sent, json.dumps({"uri": uri, "offset": offset}).encode())

    def keep(self, file: BinaryIO, name: str) -> tuple[int, str]:
        """Copy a file that shall have this relative name in the store.

        Returns:
            Length in bytes, and SHA-256 in hex.
        """
        with AtomicFile(self._files / str(time.time_ns()) / name) as kept:
            shutil.copyfileobj(file, kept, 1 << 20)
        return kept.bytes_written, kept.sha256.hexdigest()

    def files(self) -> list[tuple[Path, str]]:
        """List the files that wait, the oldest first: each one's own folder, and its name."""
        return [
            (folder, str(path.relative_to(folder)))
            for folder in sorted(self._files.glob("*"))
            for path in folder.rglob("*")
            if path.is_file() and not path.name.endswith(TEMPORARY_SUFFIX)
        ]

    def close(self) -> None:
        """Stop appending."""
        os.close(self._fd)

    def _cut(self, last_step: int | None) -> None:
        """Cut a last line that a dying process left unfinished, and numbers of later steps.

        What was sent is forgotten first, so that a kill in between loses nothing. It is forgotten
        too if a power cut took lines that had been sent, because others will take their place.
        """
        data, kept, begin = self.log.read_bytes(), bytearray(), 0
        for line, end in read(self.log):
            step = line.get("step")
            if last_step is None or not isinstance(step, int) or step <= last_step:
                kept += data[begin:end]
            begin = end
        if kept != data or self._sent_before()[1] > len(data):
            self._sent.unlink(missing_ok=True)
            write_bytes(self.log, bytes(kept))


def read(log: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each whole line of a log from a byte offset on, with the offset after it.

    A line that is no JSON object (a damaged disk) is yielded as an empty one.
    """
    with log.open("rb") as file:
        file.seek(offset)
        for text in file:
            if not text.endswith(b"\n"):
                return
            offset += len(text)
            try:
                line = json.loads(text)
            except ValueError:
                line = {}
            yield line if isinstance(line, dict) else {}, offset


def begins(log: Path) -> bool:
    """Tell whether the first line of a log is a whole start."""
    start = next((line for line, _ in read(log)), {}).get("start")
    return isinstance(start, dict) and start.keys() >= STARTED


def described(log: Path) -> dict[str, Any]:
    """Return the last ``start`` of a log, with ``created``, the first one's time, and ``status``.

    What an earlier session was told stays known: the store, if the last one was not tracked, and
    the id in it that MLFLOW_RUN_ID named. A log without a start, or no log, says nothing.
    """
    known: dict[str, Any] = {}
    for line, _ in read(log) if log.exists() else ():
        match line:
            case {"start": {"time": began} as start} if start.keys() >= STARTED:
                lasting = {key: start[key] or known.get(key) for key in ("uri", "run_id")}
                begun = {"created": known.get("created", began), "status": "RUNNING"}
                known = {**start, **lasting, **begun}
            case {"end": {"status": status}} if known:
                known["status"] = status
    return known


def put_in_place(folder: Path, log: Path) -> None:
    """Make a log that another machine wrote that of the folder's present run, if it is not that.

    The log of the run that was the present one makes room, with what was not sent of it.
    """
    token, present = described(log).get("token"), described(folder / LOG).get("token")
    if token in (None, present):
        return
    if present is not None:
        _make_room(folder, present)
    write_bytes(folder / LOG, log.read_bytes())


def _make_room(folder: Path, token: str) -> None:
    aside = folder / STATE / token / LOG
    aside.parent.mkdir(parents=True, exist_ok=True)
    move(folder / LOG, aside)


def take(folder: Path, start: Mapping[str, Any], resume: Resume) -> Record:
    """Open the record of a run, as its folder's present one, and note a start in it.

    The run is the one that ``resume`` names; else the present one, if it began with the same store,
    experiment and parameters and did not finish; else a new one. The log of another run makes room.

    Raises:
        UsageError: the token cannot be a folder's name.
    """
    log, present, token = folder / LOG, described(folder / LOG), resume.token
    if token is None:
        is_same = present and all(present[k] == start[k] for k in ("uri", "experiment", "params"))
        goes_on = is_same and present["status"] != "FINISHED"
        token = str(present["token"]) if goes_on else uuid.uuid4().hex
    if not re.fullmatch(r"[\w-]+", token):
        raise UsageError(f"run {token!r}: the name of a run has letters, digits, - and _ only")
    if present and present["token"] != token:
        _make_room(folder, present["token"])
    state = folder / STATE / token
    if (state / LOG).exists():
        move(state / LOG, log)
    record = Record(log, state, resume.step)
    record.append({"start": {**start, "token": token, "time": now()}})
    return record


def now() -> int:
    """Return the time in milliseconds since 1970, as MLflow counts it."""
    return int(time.time() * 1000)
