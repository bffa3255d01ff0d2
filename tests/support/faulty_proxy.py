"""A proxy in front of an S3 server that does to chosen requests what networks and servers do."""

import contextlib
import http.client
import socket
import ssl
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

HOP = {"connection", "transfer-encoding", "keep-alive", "expect"}


@dataclass
class Seen:
    """A request that came to the proxy."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Fault:
    """What happens to requests instead of, or besides, being passed on.

    Attributes:
        times: to how many; later ones pass unharmed.
        method: only to requests of this method; empty for all.
        path: only to requests whose path and query have this text.
        header: only to requests with this header field, in small letters; empty for all.
        skip: how many such requests pass before the first.
        status: answer with this status and do not pass the request on; 0 passes it on.
        code: S3's code in the body of that answer; empty for an answer without a body.
        body: of that answer, if it is no error.
        headers: further headers of that answer.
        truncate: bytes of the body of the true answer after which the connection ends; None for
            all of them. With `times` of many, a long object comes in such pieces.
        reset: end the connection by a reset, before the request is passed on.
        lose: pass the request on, and reset the connection in the place of the answer.
        corrupt: change the first byte of the request's body.
        before: called before the request is passed on or answered.
        midway: called when half of the answer's body was sent.
    """

    times: int = 1
    method: str = ""
    path: str = ""
    header: str = ""
    skip: int = 0
    status: int = 0
    code: str = ""
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    truncate: int | None = None
    reset: bool = False
    lose: bool = False
    corrupt: bool = False
    before: Callable[[], None] | None = None
    midway: Callable[[], None] | None = None

    def takes(self, seen: Seen) -> bool:
        """Tell whether this request is met, and count it."""
        if self.method not in ("", seen.method) or self.path not in seen.path or not self.times:
            return False
        if self.header and self.header not in {name.lower() for name in seen.headers}:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class FaultyProxy:
    """The proxy.

    Args:
        upstream: URL of the server.
        certificate: file with a certificate and its key; None speaks no TLS.

    Attributes:
        endpoint: its URL.
        seen: all requests, in order.
        faults: what is done to them; the first that takes a request is done.
        latency: seconds that every request waits before it is passed on.
        hidden: header fields of answers that are not passed on, as if the server knew no such.
    """

    def __init__(self, upstream: str, certificate: Path | None = None) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.latency = 0.0
        self.hidden: set[str] = set()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.endpoint = self.endpoint.replace("http:", "https:")
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()
        self._thread.join()

    def harmless(self) -> None:
        """Forget all requests and faults."""
        self.seen, self.faults, self.latency, self.hidden = [], [], 0.0, set()

    def take(self, seen: Seen) -> Fault:
        """Note a request; returns what is to be done to it."""
        with self._lock:
            self.seen.append(seen)
            return next((fault for fault in self.faults if fault.takes(seen)), Fault())

    def count(self, method: str, path: str = "") -> int:
        """Return how many requests of a method came whose path has this text."""
        return sum(seen.method == method and path in seen.path for seen in self.seen)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connections = weakref.WeakSet[socket.socket]()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Note a connection."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        """End all connections, also those that wait for a further request."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    proxy: FaultyProxy

    def log_message(self, format: str, *arguments: Any) -> None:
        """Be silent."""

    def handle_expect_100(self) -> bool:
        """Ask for the body at once: the client waits a second for this."""
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        seen = Seen(self.command, self.path, dict(self.headers.items()), body)
        fault = self.proxy.take(seen)
        time.sleep(self.proxy.latency)
        if fault.before:
            fault.before()
        if fault.reset:
            self._reset()
        elif fault.status:
            self._answer(fault)
        else:
            self._pass_on(seen, fault)
        self.wfile.flush()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815  (the library's names)

    def _reset(self) -> None:
        """End the connection so that the client's next read fails."""
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def _answer(self, fault: Fault) -> None:
        said = f"<Error><Code>{fault.code}</Code><Message>-</Message></Error>" if fault.code else ""
        body = (said or fault.body).encode() if self.command != "HEAD" else b""
        self.send_response(fault.status)
        for name, value in {**fault.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _pass_on(self, seen: Seen, fault: Fault) -> None:
        try:
            with self._upstream(seen, fault) as answer:
                if fault.lose:
                    answer.read()
                    self._reset()
                else:
                    self._relay(answer, fault)
        except (OSError, http.client.HTTPException):  # the server is away: so is this connection
            self._reset()

    @contextmanager
    def _upstream(self, seen: Seen, fault: Fault) -> Iterator[http.client.HTTPResponse]:
        """Send the request to the server, as it was signed."""
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        body = seen.body
        if fault.corrupt and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        with contextlib.closing(connection):
            connection.putrequest(seen.method, seen.path, skip_host=True, skip_accept_encoding=True)
            for name, value in seen.headers.items():
                if name.lower() not in HOP:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            yield connection.getresponse()

    def _relay(self, answer: http.client.HTTPResponse, fault: Fault) -> None:
        self.send_response_only(answer.status, answer.reason)
        length = answer.getheader("Content-Length")
        for name, value in answer.getheaders():
            if name.lower() not in HOP | self.proxy.hidden:
                self.send_header(name, value)
        if length is None:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        sent, middle = 0, int(length or 0) // 2
        while piece := answer.read(1 << 16):
            if fault.truncate is not None and sent + len(piece) > fault.truncate:
                self.wfile.write(piece[: fault.truncate - sent])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.wfile.write(piece)
            sent += len(piece)
            if fault.midway and sent >= middle:
                self.wfile.flush()
                fault.midway, midway = None, fault.midway
                midway()
        if length is not None and self.command != "HEAD" and sent < int(length):
            self._reset()  # the server went away
