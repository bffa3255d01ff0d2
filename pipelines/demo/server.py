"""Listening and serving until a signal."""

import errno
import os
import signal
import socket
import sys
from typing import NoReturn

import uvicorn
from starlette.types import ASGIApp

from infra.errors import UsageError
from infra.termination import Termination

CONNECTIONS = 100  # at once; a further one is answered with 503
GRACE = 1  # seconds from Ctrl-C in which answers that have begun may end


def listen(host: str, port: int) -> socket.socket:
    """Take a port, before the model is loaded; 0 takes a free one.

    Raises:
        UsageError: it is taken, or the address is none of this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            said = f"--port {port}: another program listens there; end it, or give another port"
        else:
            said = (
                f"--host {host} --port {port}: cannot listen there ({error.strerror or error}); "
                "give an address of this machine, and a port above 1023"
            )
        raise UsageError(said) from error


def url(listener: socket.socket) -> str:
    """Return the address to open in a browser."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(app: ASGIApp, listener: socket.socket) -> NoReturn:
    """Answer requests until SIGINT or SIGTERM, and end the process at once.

    A thread that is inside of a network cannot be stopped, and Python's own end, which does not
    wait for it, aborts the process. Nothing is on a disk that could be left half done.
    """
    code = 0
    try:
        with Termination():
            server(app).run(sockets=[listener])
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except SystemExit as end:
        code = int(end.code or 0)
    sys.stderr.flush()
    os._exit(code)


def server(app: ASGIApp) -> uvicorn.Server:
    """Return a server that is not yet running."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",
        ws="none",
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )
    return uvicorn.Server(config)
