"""Processes that a program starts for itself: whose signals they obey."""

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection

import pytest

from infra.children import STOPPING, live_with_parent, signals_held


def serve(pipe: Connection) -> None:
    """Answer everything that comes."""
    live_with_parent()
    while True:
        pipe.send(pipe.recv())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_child_obeys_its_parent_alone() -> None:
    """A scheduler's signals change nothing; a parent that exits ends it, which waits for its end.

    So does multiprocessing at the exit of a program that still refers to its workers.
    """
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=serve, args=(there,), daemon=True)
    with signals_held():
        child.start()
    here.send("ready")
    assert here.recv() == "ready"
    assert child.pid is not None
    for number in (signal.SIGTERM, signal.SIGTERM, *STOPPING):
        kill = f"import os; os.kill({child.pid}, {int(number)})"
        subprocess.run([sys.executable, "-S", "-c", kill], check=True)
        here.send(number)
        assert here.recv() == number
    os.kill(child.pid, signal.SIGTERM)
    child.join()

    assert child.exitcode == 1
