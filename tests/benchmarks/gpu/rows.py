"""The file of results: a JSON line for each row as soon as it is known, and what is left to do.

A row that raises is recorded with its error, and those after it go on. The file says what is done,
so that the same command goes on after a kill: rows with a result are not measured again, and a row
that was begun twice and has none ends the process, which is its result.
"""

import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from infra.errors import UserError
from infra.growing import GrowingLines
from tests.benchmarks.gpu.device import Device

Found = dict[str, Any]
DONE = ("ok", "outside tolerance", "failed", "ended the process")
TRIES = 2  # the first may have been killed for another reason than the row
LEAST_LIMIT = 60.0  # seconds that a row may take, however short it should be
SLOWER = 4.0  # times as long as expected, after which a row is taken to hang


@dataclass(frozen=True)
class Row:
    """Something to measure."""

    name: str
    seconds: float
    """That it should take on an H100 or H200 at full size, compilation included: arithmetic."""
    measure: Callable[[Device], Found]
    """Returns JSON values; ``status`` is among them where it is not "ok"."""
    memory_gb: float = 0.0
    """Of the device, that it needs about, in 1e9 bytes; 0: little."""


class Results(GrowingLines):
    """A file of results, open inside a `with` block.

    Attributes:
        found: the last line of each row that has one.
    """

    def take(self, lines: Sequence[bytes], where: str) -> None:
        """Read what is known; see `GrowingLines.take`."""
        self.found: dict[str, Found] = {}
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
                self.found[value["row"]] = value
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{where}: line {number} is no row of results ({error}); give another --out"
                ) from error

    def record(self, row: str, values: Mapping[str, Any]) -> Found:
        """Add a line, which is on the disk on return."""
        line = self.found[row] = {"row": row, **values}
        self.write([line])
        return line


def run_rows(
    rows: Sequence[Row], results: Results, device: Device, deadline: float
) -> Iterator[Found]:
    """Measure what has no result yet, in order; yields each line that is new.

    Args:
        rows: in the order of their worth.
        results: where their lines go.
        device: what they run on.
        deadline: of `time.monotonic`. A row that should take longer than what is left is not begun,
            but a shorter one after it may be.
    """
    for row in rows:
        known = results.found.get(row.name, {})
        begun = known.get("begun", 0)
        if known.get("status") in DONE:
            continue
        if begun == TRIES:
            yield results.record(row.name, {"status": "ended the process"})
            continue
        left = deadline - time.monotonic()
        lacking = device.lacking(row.memory_gb)
        if left <= (row.seconds if device.is_cuda else 0.0):
            yield results.record(row.name, {"status": "not reached", "left_s": round(left, 1)})
        elif lacking:
            yield results.record(row.name, {"status": "skipped", "why": lacking})
        else:
            results.record(row.name, {"status": "begun", "begun": begun + 1})
            yield results.record(row.name, _measured(row, device, left))


def _measured(row: Row, device: Device, left: float) -> Found:
    begun = time.perf_counter()
    limit = min(left, max(LEAST_LIMIT, SLOWER * row.seconds)) if device.is_cuda else left
    try:
        with _limited(limit):
            found = {"status": "ok", **row.measure(device)}
    except Exception as error:  # whatever it is, the rows after this one are measured
        found = {
            "status": "failed",
            "error": f"{type(error).__name__}: {str(error)[-600:]}",
            "where": "".join(traceback.format_tb(error.__traceback__)[-3:]),
        }
    device.tidy()
    return {"took_s": round(time.perf_counter() - begun, 2), **found}


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in this thread when a block takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"the row took longer than {seconds:.0f} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
