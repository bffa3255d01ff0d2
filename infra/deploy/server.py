"""A server as a process of our own: started in its folder, waited for, watched and ended."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from infra.errors import UsageError, UserError

PERIOD = 0.05  # seconds between two looks at a server that starts
LOG = "log"
TAIL = 2000  # characters of a log in a message
PATIENCE = 30.0  # seconds that a server gets to end by itself


class Server:
    """A program that serves, with a folder of its own for its data and its log.

    Args:
        name: for messages.
        command: the program and its arguments.
        folder: where it runs; what it says is added to ``FOLDER/log``.
        url: that answers once it serves.
        status: of that answer.
        variables: of its environment, besides those of this process.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        url: str,
        *,
        status: int = 200,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        self._command = [*command]
        self._url = url
        self._status = status
        self._variables = dict(variables or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers, however long that takes.

        Raises:
            UserError: it ended before.
        """
        with (self.folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **self._variables},
                start_new_session=True,  # Ctrl-C is for the program that started it
            )
        while not self._answers():
            self.check()
            time.sleep(PERIOD)

    def check(self) -> None:
        """Look whether it still runs.

        Raises:
            UserError: it has ended; the message has the end of its log.
        """
        code = None if self._process is None else self._process.poll()
        if code is not None:
            log = self.folder / LOG
            said = log.read_text(errors="replace")[-TAIL:].strip()
            raise UserError(f"{self.name} ended with exit code {code}; the end of {log}:\n{said}")

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and all its processes, in good order unless ``how`` is SIGKILL."""
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, how)
            self._process.wait(PATIENCE)
        except ProcessLookupError:
            self._process.wait()
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self._url, timeout=5) as answer:
                return bool(answer.status == self._status)
        except urllib.error.HTTPError as error:
            return error.code == self._status
        except OSError:
            return False


def check_ports(host: str, ports: Iterable[int]) -> None:
    """Check that a server could listen on every one of the ports.

    Raises:
        UsageError: one is taken, or the address is not this machine's.
    """
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen(1)
            except OSError as error:
                raise UsageError(
                    f"{host}:{port} cannot be listened on ({error.strerror}); end what does, or "
                    "give another --host, --port or --mlflow-port"
                ) from error
