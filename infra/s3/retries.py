"""When a request that failed is sent again, how long to wait before, and a count of what failed.

boto3 is told to send every request once: its own retries know neither the bytes of an answer that
have come already nor how long an endpoint has been away. Its rate limiter stays: it slows all
requests of a process down while the server says that it is busy, and speeds up again after.
"""

import logging
import os
import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from infra.errors import UsageError
from infra.s3 import errors

clock, wait = time.monotonic, time.sleep  # seconds; a test puts its own in their place
logger = logging.getLogger("infra.s3")
BUSY = {
    "RequestTimeout",  # with status 400: the body did not come in time
    "IncompleteBody",
    "BadDigest",  # bytes that changed on the way are sent again
    "XAmzContentChecksumMismatch",
    "OperationAborted",
    "ConditionalRequestConflict",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
}
BROKEN = (boto.HTTPClientError, boto.IncompleteReadError, ResponseParserError)


@dataclass(frozen=True)
class Patience:
    """How long failures are borne; the variable AWS_MAX_ATTEMPTS sets the first of them."""

    attempts: int = 10
    """Times that a request is sent while the server is busy or connections break."""
    first_delay: float = 0.2
    """Seconds before the second attempt; each later delay is up to twice as long."""
    longest_delay: float = 20.0
    """Seconds that no delay exceeds."""
    unreachable: float = 8.0
    """Seconds after which an endpoint that cannot be reached is given up."""
    refusals: int = 3
    """Times that a request is sent again which is refused after others were served: permissions of
    a busy store fail for a moment now and then."""

    def delay(self, failed: int) -> float:
        """Return seconds to wait after so many failures: a random share of a growing limit.

        The share is drawn from the system, so that processes that failed together come back apart;
        no result depends on it.
        """
        limit: float = min(self.longest_delay, self.first_delay * 2.0 ** (failed - 1))
        return limit * (0.5 + secrets.randbelow(1000) / 2000)


def patience() -> Patience:
    """Return how long failures are borne, by the environment.

    Raises:
        UsageError: AWS_MAX_ATTEMPTS is no number above 0.
    """
    attempts = os.environ.get("AWS_MAX_ATTEMPTS")
    if attempts is None:
        return Patience()
    if not attempts.isdecimal() or int(attempts) < 1:
        raise UsageError(f"AWS_MAX_ATTEMPTS is {attempts!r}; give a whole number from 1 on")
    return Patience(attempts=int(attempts))


class Faults:
    """A count, by reason, of the requests of this process that failed and were sent again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, reason: str, uri: str) -> None:
        """Count a fault; the log hears of the 1st, 2nd, 4th, 8th ... of a reason."""
        with self._lock:
            self._counts[reason] += 1
            count = self._counts[reason]
        if count & (count - 1) == 0:
            logger.warning("%s: %s; sent again (number %d of this kind)", uri, reason, count)

    def counts(self) -> dict[str, int]:
        """Return how many requests failed and were sent again, by reason."""
        with self._lock:
            return dict(self._counts)


class Attempts:
    """The failures of one request.

    Args:
        operation: the method of the client, `get_object`.
        uri: the object that is meant.
    """

    def __init__(self, operation: str, uri: str) -> None:
        self.operation, self.uri = operation, uri
        self.failed = 0
        self._patience = patience()
        self._refused = 0
        self._renewed = False
        self._unreachable_since: float | None = None

    def progressed(self) -> None:
        """Begin anew, because bytes came."""
        self.failed = 0
        self._unreachable_since = None

    def failed_with(self, error: Exception, *, served: bool, endpoint: str | None) -> bool:
        """Wait until the request may be sent again.

        Args:
            error: how it failed.
            served: whether the server has served this process before.
            endpoint: URL of the server, for messages.

        Returns:
            Whether the credentials are to be looked up anew before.

        Raises:
            UserError: it is not to be sent again.
        """
        self.failed += 1
        delay = self._patience.delay(self.failed)
        renew = errors.code_of(error) in errors.EXPIRED | errors.UNKNOWN_KEY
        if not self._may_repeat(error, served, renew, delay):
            raise errors.explained(
                error, self.operation, self.uri, endpoint, self.failed
            ) from error
        faults().add(errors.code_of(error), self.uri)
        wait(0 if renew else delay)
        return renew

    def _may_repeat(self, error: Exception, served: bool, renew: bool, delay: float) -> bool:
        if isinstance(error, errors.UNREACHABLE):
            return self._is_early(delay)
        self._unreachable_since = None
        if renew:  # once: a helper may have written new ones to the credentials file
            self._renewed, again = True, served and not self._renewed
            return again
        if errors.code_of(error) in errors.DENIED:
            self._refused += 1  # HEAD says nothing of why; whoever sent it asks again by GET
            again = self._refused <= self._patience.refusals
            return again and served and self.operation != "head_object"
        return is_passing(error) and self.failed < self._patience.attempts

    def _is_early(self, delay: float) -> bool:
        """Tell whether an endpoint will have been away for less time than is borne by then."""
        now = clock()
        if self._unreachable_since is None:
            self._unreachable_since = now
        away = now - self._unreachable_since + delay
        return away < self._patience.unreachable


def is_passing(error: Exception) -> bool:
    """Tell whether the same request may succeed later: a busy server, or a broken connection."""
    if isinstance(error, boto.SSLError):
        return False
    status = errors.status_of(error)
    if errors.code_of(error) in errors.FULL or status == 501:
        return False
    busy = status == 429 or status >= 500 or errors.code_of(error) in BUSY
    return busy or isinstance(error, BROKEN)


def faults() -> Faults:
    """Return the count of this process."""
    return _faults


def _forget() -> None:
    global _faults  # noqa: PLW0603  (a forked process counts its own; its parent's lock may be held)
    _faults = Faults()


_faults = Faults()


os.register_at_fork(after_in_child=_forget)
