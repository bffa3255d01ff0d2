"""One boto3 client per process, and the requests that go through it.

Everything about the server comes from the standard AWS variables and files. A client is never used
in another process than the one that made it: a forked process makes its own. Forking while another
thread sends a request is not safe: OpenSSL's locks, which that thread may hold, stay locked in the
new process for ever.
"""

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from infra.folders.contract import Missing
from infra.s3.errors import explained
from infra.s3.retries import Attempts

CONNECTIONS = 64  # that a client keeps open; more threads than that wait for each other
CONNECT_TIMEOUT = 2.0  # seconds; with what `Patience` bears, an absent server is known in 10
READ_TIMEOUT = 30.0  # seconds without a byte; a store may think for 10 about a contested name
AS_THEY_ARE = ("AWS_MAX_ATTEMPTS", "AWS_USE_DUALSTACK_ENDPOINT", "AWS_USE_FIPS_ENDPOINT")
"""Variables that have the same meaning on every machine."""
RAISED = (BotoCoreError, ClientError, ResponseParserError, ValueError, RuntimeError)
T = TypeVar("T")


class Connection:
    """The client of this process, made when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._client: Any = None
        self.served = False
        self.buckets: set[str] = set()
        """Buckets that are known to exist, because a request for something in them was served."""

    def client(self) -> Any:
        """Return the client."""
        with self._lock:
            if self._client is None:
                self._client = _made(_session())
            return self._client

    def renew(self, failed: Any) -> None:
        """Make a new client, with credentials looked up anew, in the place of one that failed."""
        with self._lock:
            if self._client is failed:
                self._client = None

    @property
    def endpoint(self) -> str | None:
        """The server's URL; None before there is a client."""
        return None if self._client is None else str(self._client.meta.endpoint_url)


def _session() -> boto3.session.Session:
    return boto3.session.Session(region_name=os.environ.get("AWS_REGION") or None)


def _made(session: boto3.session.Session, **settings: Any) -> Any:
    """Make a client that sends each request once; ``settings`` are further ones of a `Config`."""
    config = Config(
        retries={"mode": "adaptive", "total_max_attempts": 1},
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
        response_checksum_validation="when_required",  # our own digest is checked instead
        **settings,
    )
    return session.client("s3", config=config)


def variables_for(whom: str) -> dict[str, str]:
    """Return variables by which the clients of another machine ask the server that this one asks.

    They hold what boto3 makes of this machine's variables and profile: an endpoint and a region,
    each if one is set, and the checksums of requests. Amazon's own endpoint follows from the
    region. Keys, and what is of this machine alone, such as files and proxies, are left out.

    Args:
        whom: who is to have them, for messages.

    Raises:
        UserError: the AWS settings cannot be used.
    """
    try:
        session = _session()  # once: each reads boto3's description of S3 anew
        client = _made(session)
        amazon = _made(session, ignore_configured_endpoint_urls=True).meta.endpoint_url
    except RAISED as error:
        raise explained(error, "head_object", whom, None, 1) from error
    checksums = client.meta.config.request_checksum_calculation
    found = {name: os.environ[name] for name in AS_THEY_ARE if name in os.environ}
    if client.meta.endpoint_url != amazon:
        found["AWS_ENDPOINT_URL_S3"] = client.meta.endpoint_url
    if session.region_name:
        found["AWS_REGION"] = session.region_name
    return {**found, "AWS_REQUEST_CHECKSUM_CALCULATION": checksums}


def connection() -> Connection:
    """Return this process's connection."""
    return _connection


def forget() -> None:
    """Drop this process's client: the next request reads the AWS variables anew."""
    global _connection  # noqa: PLW0603  (a client is a thing of the process)
    _connection = Connection()


def wants_checksums(uri: str) -> bool:
    """Tell whether requests are to carry the newer checksums, which is the default.

    Args:
        uri: what is to be written, for messages.

    Raises:
        UserError: the AWS settings cannot be used.
    """
    try:
        config = connection().client().meta.config
    except RAISED as error:
        raise explained(error, "put_object", uri, None, 1) from error
    return bool(config.request_checksum_calculation != "when_required")


def call(operation: str, uri: str, **parameters: Any) -> Any:
    """Send a request, again if it fails in passing.

    Args:
        operation: a method of boto3's client, `put_object`.
        uri: the object that is meant, for messages.
        parameters: of the method.

    Raises:
        UserError: it failed for good.
    """
    try:
        answer = tried(
            Attempts(operation, uri), lambda client: getattr(client, operation)(**parameters)
        )
    except Missing:
        if operation == "get_object":  # which says NoSuchBucket if that is what is missing
            connection().buckets.add(parameters["Bucket"])
        raise
    connection().buckets.add(parameters["Bucket"])
    return answer


def tried(attempts: Attempts, request: Callable[[Any], T]) -> T:
    """Return what ``request`` makes of the client, tried again while ``attempts`` allow it.

    Raises:
        UserError: it failed for good.
    """
    while True:
        connected, client = connection(), None
        try:
            client = connected.client()
            answer = request(client)
        except RAISED as error:
            if attempts.failed_with(error, served=connected.served, endpoint=connected.endpoint):
                connected.renew(client)
        else:
            connected.served = True
            return answer


_connection = Connection()
os.register_at_fork(after_in_child=forget)
