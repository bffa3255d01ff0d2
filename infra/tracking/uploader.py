"""A log's way to MLflow: in the background, in order, each line once, however often it fails."""

import contextlib
import shlex
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infra.errors import UsageError
from infra.storage import exclusive, remove_tree
from infra.tracking.record import LOG, STARTED, STATE, Record, begins, described, read
from infra.tracking.rules import MAX_POINTS, keep_quiet, tracking_uri, without_password
from infra.tracking.store import RunInStore

PERIOD = 1.0  # seconds between requests; a request carries what was recorded meanwhile
LONGEST_PAUSE = 30.0  # seconds between attempts while the store is away
INVALID = frozenset({"INVALID_PARAMETER_VALUE"})
# Error codes after which a line is not sent again, where they are not INVALID alone: nothing can be
# stored without the run, and a store may have no registry.
REFUSALS: dict[str, frozenset[str]] = {
    "start": frozenset(),
    "model": INVALID | {"PERMISSION_DENIED", "FEATURE_DISABLED", "ENDPOINT_NOT_FOUND"},
}


def warn(message: str) -> None:
    """Tell the person at the terminal."""
    with contextlib.suppress(OSError):  # a terminal may end before the job does
        sys.stderr.write(f"tracking: {without_password(message)}\n")


class Uploader(threading.Thread):
    """The thread that sends a log, from where the last process left off, and the files beside it.

    Attributes:
        uri: of the store, without its password.
        store: the run in it.
    """

    def __init__(self, record: Record, uri: str) -> None:
        super().__init__(name="mlflow-uploader", daemon=True)
        self._record = record
        self.uri = without_password(uri)
        self.store = RunInStore(uri)
        self._offset = record.offset(self.uri)
        self._closing = threading.Event()

    def run(self) -> None:
        """Send every second until :meth:`close`; while the store is away, less and less often."""
        pause, away = PERIOD, False
        while True:
            closing = self._closing.is_set()
            error = self.attempt()
            if error and not away:
                warn(f"{error}; the job goes on and its records wait in {self._record.log}")
            elif away and not error:
                warn(f"{self.uri} is back and has everything recorded so far")
            away = bool(error)
            pause = min(2 * pause, LONGEST_PAUSE) if away else PERIOD
            if closing:
                return
            self._closing.wait(pause)

    def close(self, patience: float) -> None:
        """Make a last attempt and wait for it, at most ``patience`` seconds."""
        self._closing.set()
        self.join(patience)

    def attempt(self) -> str:
        """Send all that waits; returns in one line what stood in the way, or an empty string."""
        try:
            self._send_all()
        except Exception as error:  # MLflow, database drivers and HTTP libraries raise all sorts
            return f"{self.uri}: {(str(error) or type(error).__name__).splitlines()[0][:300]}"
        return ""

    def left(self) -> str:
        """Count what has not arrived, in words; empty when everything has."""
        lines = sum(1 for _ in read(self._record.log, self._offset))
        files = len(self._record.files())
        return f"{lines} records and {files} files" if lines or files else ""

    def _send_all(self) -> None:
        """Send all that is recorded; what arrived is remembered even if the rest fails."""
        # At the first success of this process; a log whose first line is whole begins by itself.
        if not self.store.experiment_id and (self._offset or not begins(self._record.log)):
            self.store.begin(described(self._record.log))
        points: list[Any] = []
        end = self._offset
        for line, offset in read(self._record.log, self._offset):
            found = self._points(line)
            if points and (found is None or len(points) >= MAX_POINTS // 2):
                self._offer(end, self.store.add_points, points)
                points = []
            if found is None:
                self._send(line, offset)
            else:
                points += found
            end = offset
        if end > self._offset:
            self._offer(end, self.store.add_points, points)
        self._send_files()

    def _points(self, line: Mapping[str, Any]) -> list[Any] | None:
        """Turn a line of numbers into points that the store lacks; None: it is another line."""
        match line:
            case {"time": time, "step": step, **values} | {"time": time, "second": step, **values}:
                pass
            case {"time": time, **values}:
                step = None
            case _:
                return None
        are_numbers = all(isinstance(value, int | float) for value in values.values())
        return self.store.points(values, time, step) if are_numbers else None

    def _send(self, line: Mapping[str, Any], offset: int) -> None:
        """Send a line that is not of numbers."""
        senders: dict[str, Callable[[Any], None]] = {
            "start": self.store.begin,
            "params": self.store.add_params,
            "tags": self.store.set_tags,
            "dataset": self.store.add_dataset,
            "model": self._register,
            "end": self.store.end,
        }
        kind = next(iter(line), "")
        content = line.get(kind)
        is_whole = isinstance(content, dict) and (kind != "start" or content.keys() >= STARTED)
        if kind in senders and is_whole:
            self._offer(offset, senders[kind], content, REFUSALS.get(kind, INVALID))
        else:
            warn(f"{self._record.log} has a damaged line; all others are sent")
            self._arrived(offset)

    def _register(self, model: Mapping[str, Any]) -> None:
        """Send the files that wait, a model's among them, then make those a version."""
        self._send_files()
        if not self.store.has_model(model):
            self.store.add_model(model)

    def _send_files(self) -> None:
        for folder, name in self._record.files():
            self.store.add_file(folder / name, name.rpartition("/")[0])
            remove_tree(folder)

    def _offer(
        self,
        offset: int,
        send: Callable[[Any], None],
        content: Any,
        refusals: frozenset[str] = INVALID,
    ) -> None:
        """Send what the store may refuse for ever; refused, it stays in the log only."""
        from mlflow.exceptions import MlflowException

        try:
            send(content)
        except MlflowException as error:
            if error.error_code not in refusals:
                raise
            warn(f"{self.uri}: {error}; not sent again, but kept in {self._record.log}")
        self._arrived(offset)

    def _arrived(self, offset: int) -> None:
        """Remember how far the log has been sent."""
        self._record.save_offset(self.uri, offset)
        self._offset = offset


def command(folder: Path) -> str:
    """Return the command line that sends what waits in a run's folder."""
    return f"python -m infra.tracking {shlex.quote(str(folder.absolute()))}"


def send_waiting(folder: Path) -> int:
    """Send what the runs of a folder left there; returns how many still have something there.

    Raises:
        UsageError: nothing in the folder waits for the store of MLFLOW_TRACKING_URI.
        UserError: a process is recording a run in the folder.
    """
    keep_quiet()
    uri, errors = tracking_uri(), []
    logs = [path for path in (folder / LOG, *folder.glob(f"{STATE}/*/{LOG}")) if path.exists()]
    runs = [(log, described(log)) for log in logs]
    ours = [(log, run["token"]) for log, run in runs if run.get("uri") == without_password(uri)]
    for log, token in ours:
        with exclusive(folder / STATE):
            record = Record(log, folder / STATE / token)
            uploader = Uploader(record, uri)
            if uploader.left():
                errors.append(uploader.attempt())
                rest = f"{uploader.left()} are left" if errors[-1] else "everything has arrived"
                warn(f"run {uploader.store.run_id}: {rest}. {errors[-1]}")
            record.close()
    if not errors:
        raise UsageError(
            f"{folder}: nothing here waits for {without_password(uri)}; check the folder, and "
            "MLFLOW_TRACKING_URI, which must be what it was when the run began"
        )
    return sum(map(bool, errors))
