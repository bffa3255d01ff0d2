"""A journal's way to MLflow: in the background, in order, each record once, however often it fails.

``python -m infra.tracking.delivery FOLDER`` sends what runs left in a folder while the store was
away.
"""

import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.cli import run
from infra.errors import UsageError
from infra.tracking.journal import Journal, others
from infra.tracking.rules import MAX_POINTS, keep_quiet, tracking_uri, without_password
from infra.tracking.store import Point, RunInStore

PERIOD = 1.0  # seconds between requests; a request carries what was recorded meanwhile
LONGEST_PAUSE = 30.0  # seconds between attempts while the store is away
REFUSALS = frozenset({"INVALID_PARAMETER_VALUE"})
NO_REGISTRY = frozenset({"PERMISSION_DENIED", "FEATURE_DISABLED", "ENDPOINT_NOT_FOUND"})


def warn(message: str) -> None:
    """Tell the person at the terminal."""
    sys.stderr.write(f"tracking: {without_password(message)}\n")


class Delivery(threading.Thread):
    """The thread that carries a journal to a store, and then those that earlier processes left.

    Attributes:
        journal: where the records wait.
        store: where they go.
        uri: of the store.
        refused: how many requests the store refused as invalid; they are not repeated.
    """

    def __init__(self, journal: Journal, uri: str) -> None:
        super().__init__(name="mlflow-delivery", daemon=True)
        sent = journal.load("sent.json")
        self.journal = journal
        self.store = RunInStore(uri, journal.token, {**journal.load("run.json"), **sent})
        self.uri = uri
        self.refused: int = sent.get("refused", 0)
        # A power cut may have taken the journal's last lines; others are recorded in their place.
        self._offset: int = min(sent.get("offset", 0), journal.size)
        self._closing = threading.Event()

    def run(self) -> None:
        """Carry every second until :meth:`close`; while the store is away, less and less often."""
        pause, away, alone = PERIOD, False, False
        while True:
            closing = self._closing.is_set()
            error = self.attempt()
            if error is not None:
                if not away:
                    warn(f"{error}; the job goes on and its records wait in {self.journal.folder}")
                away, pause = True, min(2 * pause, LONGEST_PAUSE)
            else:
                if away:
                    warn(f"{self.uri} is back and has everything recorded so far")
                away, pause = False, PERIOD
                if not alone:
                    self._attempt_leftovers()
                alone = True
            if closing:
                return
            self._closing.wait(pause)

    def close(self, timeout: float) -> None:
        """Make a last attempt and wait for it, at most ``timeout`` seconds."""
        self._closing.set()
        self.join(timeout)

    def attempt(self) -> str | None:
        """Carry what there is; returns in one line what stood in the way, or None."""
        try:
            self._carry()
        except Exception as error:  # MLflow, database drivers and HTTP libraries raise all sorts
            return f"{self.uri}: {(str(error) or type(error).__name__).splitlines()[0][:300]}"
        return None

    def left(self) -> tuple[int, int]:
        """Count the records and files that have not arrived."""
        return sum(1 for _ in self.journal.read(self._offset)), len(self.journal.files())

    def settle(self) -> None:
        """Delete the journal of a finished run that arrived whole; let any other go as it is."""
        finished = self.journal.load("run.json").get("status") == "FINISHED"
        if finished and not (self.refused or self.journal.unwritten or any(self.left())):
            self.journal.remove()
        else:
            self.journal.close()

    def _attempt_leftovers(self) -> None:
        """Send what earlier processes left; what cannot be sent waits for the next process."""
        for journal in others(self.journal.folder.parent, without_password(self.uri)):
            leftover = Delivery(journal, self.uri)
            error = leftover.attempt()
            if error is not None:
                warn(f"{error}; an earlier run's records wait on in {leftover.journal.folder}")
            leftover.settle()

    def _carry(self) -> None:
        """Send all that is recorded; what arrived is remembered even if the rest fails."""
        points: list[Point] = []
        end = self._offset
        for record, offset in self.journal.read(self._offset):
            if points and ("metrics" not in record or len(points) >= MAX_POINTS // 2):
                self._offer(end, self.store.add_points, points)
                points = []
            if "metrics" in record:
                points += self._points(record)
            else:
                self._send(record, offset)
            end = offset
        if end > self._offset:
            self._offer(end, self.store.add_points, points)
        self._send_files("")

    def _send_files(self, folder: str) -> None:
        """Send the files that are kept in a folder and below."""
        for name in self.journal.files(folder):
            version = self.journal.path(name).stat()
            self.store.add_file(self.journal.path(name), name.rpartition("/")[0])
            self.journal.discard(name, version)

    def _register(self, model: Mapping[str, Any]) -> None:
        """Send a model's files, then make them a version, so that no version lacks its files."""
        if not self.store.has_model(model):
            self._send_files(model["folder"])
            self.store.add_model(model)

    def _points(self, record: Mapping[str, Any]) -> list[Point]:
        """Turn a record into points, less those of steps that the store has."""
        step = record.get("step")
        points = [
            Point(key, value, record["time"], step or 0) for key, value in record["metrics"].items()
        ]
        return points if step is None else [point for point in points if self.store.is_new(point)]

    def _send(self, record: Mapping[str, Any], offset: int) -> None:
        """Send a record that is not of metrics."""
        match record:
            case {"start": start, "time": time}:
                self.store.begin(start, time)
                self._arrived(offset)
            case {"params": params}:
                self._offer(offset, self.store.add_params, params)
            case {"tags": tags}:
                self._offer(offset, self.store.set_tags, tags)
            case {"dataset": dataset}:
                self._offer(offset, self.store.add_dataset, dataset)
            case {"model": model}:
                self._offer(offset, self._register, model, REFUSALS | NO_REGISTRY)
            case {"end": status, "time": time}:
                self.store.end(status, time)
                self._arrived(offset)
            case _:
                self.refused += 1
                warn(f"{self.journal.folder} has a damaged record; all others are sent")
                self._arrived(offset)

    def _offer(
        self, offset: int, send: Any, what: Any, refusals: frozenset[str] = REFUSALS
    ) -> None:
        """Send what the store may refuse for ever; refused, it stays in the journal only."""
        from mlflow.exceptions import MlflowException

        try:
            send(what)
        except MlflowException as error:
            if error.error_code not in refusals:
                raise
            self.refused += 1
            warn(f"{self.uri}: {error}; not sent again, but kept in {self.journal.folder}")
        self._arrived(offset)

    def _arrived(self, offset: int) -> None:
        """Remember how far the journal has been sent."""
        self._offset = offset
        sent = {**self.store.facts(), "offset": offset, "refused": self.refused}
        self.journal.save("sent.json", sent)


def deliver(folder: Path) -> int:
    """Send what runs left in ``folder``; returns how many of them still have something there.

    Raises:
        UsageError: nothing in the folder is meant for the store of MLFLOW_TRACKING_URI.
    """
    keep_quiet()
    uri = tracking_uri()
    journals = others(folder, without_password(uri))
    if not journals:
        raise UsageError(
            f"{folder}: nothing here waits for {without_password(uri)}; check the folder, and "
            "MLFLOW_TRACKING_URI, which must be what it was when the run began"
        )
    waiting = 0
    for journal in journals:
        delivery = Delivery(journal, uri)
        error = delivery.attempt()
        records, files = delivery.left()
        waiting += bool(error)
        state = error or "everything has arrived"
        warn(f"run {delivery.store.run_id}: {records} records, {files} files left to send; {state}")
        delivery.settle()
    return waiting


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m infra.tracking.delivery FOLDER``; returns 1 while something is left."""
    if len(arguments) != 1:
        raise UsageError(
            "usage: python -m infra.tracking.delivery FOLDER, the one that the warning named"
        )
    return 1 if deliver(Path(arguments[0])) else 0


if __name__ == "__main__":
    run(main)
