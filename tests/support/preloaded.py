"""Start programs in processes that have imported already what takes long to import.

    process = Preloaded("trainers.flow", ["--preset", "tiny", ...], tmp_path)
    out, errors = process.communicate()

A small training or job is some tenths of a second of work after five seconds of imports. What is
started here is a process of its own with arguments, environment and output of its own, which runs a
module as ``python -m`` does and can be killed. But it is forked from a process that has imported
the libraries and done nothing else. `conftest.program` and `training_sets.launch` start a program
as a user does; at least one test of each program does so.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import PATIENCE, ROOT, environment

IMPORTS = (
    *("trainers.loop.run", "trainers.recipes.flow", "trainers.recipes.vae"),
    *("trainers.recipes.predictor", "pipelines.curate.job", "pipelines.encode.job", "tyro"),
    *("pyarrow.dataset", "torch._inductor.compile_fx", "deepspeed.runtime.zero.muon.original_muon"),
)


class Preloaded:
    """A program that was started.

    Args:
        module: what runs.
        arguments: its arguments.
        folder: as in `conftest.environment`.
        variables: further variables of its environment.

    Attributes:
        pid: of its process.
        returncode: as that of `subprocess.Popen`; None until `communicate` has returned.
    """

    def __init__(
        self, module: str, arguments: Sequence[str | Path], folder: Path, **variables: str
    ) -> None:
        self._said = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115  (`communicate`)
        self._reports, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._reports.settimeout(PATIENCE)
        variables = {**environment(folder), "DS_ACCELERATOR": "cpu", **variables}
        order = json.dumps([variables, module, *map(str, arguments)]).encode()
        with theirs:
            files = [*(file.fileno() for file in self._said), theirs.fileno()]
            socket.send_fds(_starter(), [order], files)
        self.pid = int(self._reports.recv(16))
        self.returncode: int | None = None

    def communicate(self) -> tuple[str, str]:
        """Wait until it has ended; returns what it wrote to its output and to its error output."""
        said = []
        with self._reports:
            self.returncode = int(self._reports.recv(16))
        for written in self._said:
            with written:
                written.seek(0)
                said.append(written.read())
        return said[0], said[1]

    def kill(self) -> None:
        """Kill its process."""
        os.kill(self.pid, signal.SIGKILL)


@functools.cache
def _starter() -> socket.socket:
    """Start the process that has the imports; returns what takes the orders."""
    mine, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.preloaded", str(theirs.fileno())],
            cwd=ROOT,
            env={**environment(ROOT), "DS_ACCELERATOR": "cpu"},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    atexit.register(process.wait)
    atexit.register(mine.close)  # is called first, and ends it
    return mine


def _start(orders: socket.socket) -> None:
    """Fork for each order; returns in the process that is to run what ``sys.argv`` says."""
    watching = 0
    while True:
        order, files, _, _ = socket.recv_fds(orders, 1 << 20, 3)
        while watching and os.waitpid(-1, os.WNOHANG)[0]:
            watching -= 1
        if not order:
            sys.exit()
        if os.fork() == 0:
            orders.close()
            return _watch(json.loads(order), *files)
        watching += 1
        for file in files:
            os.close(file)


def _watch(order: list[Any], out: int, errors: int, reports: int) -> None:
    """Fork the process, report its number and how it ends; returns in that process."""
    pid = os.fork()
    if pid == 0:
        os.close(reports)
        os.dup2(out, 1)
        os.dup2(errors, 2)
        variables, *sys.argv = order
        os.environ.clear()
        os.environ.update(variables)
        return
    os.write(reports, str(pid).encode())
    os.write(reports, str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os._exit(0)


if __name__ == "__main__":
    from trainers.loop.engine import _hidden

    with _hidden("mlflow"):  # as the trainers do
        importlib.import_module("deepspeed.ops")
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # or collections in the new processes would write to all of its memory
    _start(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
