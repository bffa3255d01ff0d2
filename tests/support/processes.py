"""The processes below a process, and whether they have ended."""

import time
from pathlib import Path

from tests.conftest import PATIENCE


def descendants(pid: int) -> list[int]:
    """List the processes below a process."""
    task = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(child) for child in task.read_text().split()] if task.exists() else []
    return [*children, *(below for child in children for below in descendants(child))]


def is_running(pid: int) -> bool:
    """Tell whether a process is there, and has not ended (as one has that nobody waits for)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_end(pids: list[int]) -> list[int]:
    """Wait until processes have ended; returns those that have not."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and any(map(is_running, pids)):
        time.sleep(0.05)
    return list(filter(is_running, pids))
