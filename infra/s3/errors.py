"""What a store's refusal means to the user: one sentence with the object, the cause, the remedy.

No message repeats what the server or a credential helper wrote about keys and signatures.
"""

import email.utils
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from botocore import compat
from botocore import exceptions as boto
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from infra.errors import UserError
from infra.folders.contract import Missing, Refused, Replaced, Short, Unavailable

PERMISSIONS = {
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "list_objects_v2": "s3:ListBucket",
    "delete_object": "s3:DeleteObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
}  # every other call here writes
WRITES = "s3:PutObject"
OTHER_THAN_ASKED = {"InvalidRange": Short, "416": Short, "PreconditionFailed": Replaced}
ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})
DENIED = frozenset({"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"})
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
UNKNOWN_KEY = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"})
FULL = frozenset({"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "507"})
ELSEWHERE = frozenset(
    {"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "301", "307"}
)
ANSWERS = (
    (ABSENT, "there is no such object in the bucket {bucket} at {server}; check the name"),
    (
        {"NoSuchBucket"},
        "there is no bucket {bucket} at {server}; create it, or correct the URI or "
        "AWS_ENDPOINT_URL_S3",
    ),
    (DENIED, "{call} was refused; the credentials need the permission {permission} here"),
    (
        EXPIRED,
        "the credentials have expired; renew them (`aws sso login`, or a new AWS_SESSION_TOKEN "
        "with its two keys) and run the same command again",
    ),
    (
        UNKNOWN_KEY,
        "{server} does not accept the access key and its secret ({code}); check "
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE",
    ),
    (ELSEWHERE, "the bucket {bucket} is in {region}; set AWS_REGION to that"),
    ({"RequestTimeTooSkewed"}, "this machine's clock {clock}; set it right (NTP)"),
    (FULL, "the store is full ({code}); free some space and run the same command again"),
    (
        {"PreconditionFailed"},
        "the object was replaced while it was read; run the same command again",
    ),
    (
        {"NoSuchUpload"},
        "the upload was aborted by another process; run the same command again",
    ),
    ({"InvalidRange", "416"}, "the object ends before the bytes asked for; copy it anew"),
    (
        {"NotImplemented"},
        "{call} with these checksums is not implemented by {server}; set "
        "AWS_REQUEST_CHECKSUM_CALCULATION=when_required",
    ),
)
REFUSED_READ = (
    "missing or forbidden: {call} was refused, which it is for a missing object too when the "
    "credentials may not list the bucket; check the name, and that they have {permission} on the "
    "object and s3:ListBucket on the bucket {bucket}"
)
OTHER_SERVICE = (
    "the credentials of the AWS profile could not be had: {call} was answered with {status} "
    "({code}); check role_arn and source_profile in the AWS configuration files"
)
OTHER_ANSWER = (
    "{call} was answered with {status} ({code}) by {server}; run the same command again later, or "
    "with fewer workers; AWS_MAX_ATTEMPTS sets how often a request is tried"
)
FAILURES = (
    (
        boto.NoCredentialsError,
        "no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "AWS_PROFILE",
    ),
    (
        boto.PartialCredentialsError,
        "the AWS credentials are incomplete; set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    (
        boto.ProfileNotFound,
        "AWS_PROFILE names a profile that is not in the AWS configuration files; correct it",
    ),
    (
        (boto.SSOError, boto.TokenRetrievalError),
        "the sign-in has expired or is missing; run `aws sso login`",
    ),
    (
        boto.CredentialRetrievalError,
        "the credential helper of the AWS profile failed; run its command by hand to see why",
    ),
    (
        RuntimeError,  # what botocore raises when renewed credentials are old ones
        "the credentials have expired, and their source gives no new ones; renew them there",
    ),
    (
        boto.SSLError,
        "the certificate of {server} is not trusted; give the file of its authority in "
        "AWS_CA_BUNDLE (each machine of a Ray cluster where `ray start` runs), or http:// in "
        "AWS_ENDPOINT_URL_S3 if the server speaks no TLS",
    ),
    (
        (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError),
        "{server} cannot be reached; check that the store is up and that AWS_ENDPOINT_URL_S3 is "
        "right, and run the same command again",
    ),
    (
        (boto.HTTPClientError, boto.IncompleteReadError, ResponseParserError),
        "the connection to {server} broke ({code}); run the same command again, and if it breaks "
        "again look at the network and at the server's log",
    ),
)
SETTINGS = (
    "the AWS settings cannot be used ({code}); check AWS_ENDPOINT_URL_S3 (http://HOST:PORT), "
    "AWS_REGION and the AWS configuration files"
)
UNREACHABLE = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError)


def code_of(error: BaseException | None) -> str:
    """Return the server's code for an error (`SlowDown`), or the name of a failure on the way."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "?"))
    return type(error).__name__


def status_of(error: Exception) -> int:
    """Return the HTTP status of an answer, 0 if there was no answer."""
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def explained(
    error: Exception, operation: str, uri: str, endpoint: str | None, tries: int
) -> UserError:
    """Turn a failure into what the user is told.

    Args:
        error: what boto3 raised.
        operation: the method of the client that raised it, `get_object`.
        uri: the object or folder that was meant.
        endpoint: URL of the server; None if there is no client yet.
        tries: how often the request was sent.
    """
    answered = isinstance(error, ClientError)
    call = "".join(word.capitalize() for word in operation.split("_"))
    asked = getattr(error, "operation_name", call)  # AssumeRole, where a role comes first
    if asked != call:
        template = OTHER_SERVICE
    else:
        template = _of_answer(code_of(error), operation) if answered else _of_failure(error)
    said = template.format(
        bucket=uri.removeprefix("s3://").partition("/")[0],
        server=server(getattr(error, "kwargs", {}).get("endpoint_url", endpoint)),
        call=asked,
        permission=PERMISSIONS.get(operation, WRITES),
        code=code_of(error),
        status=status_of(error),
        region=_region(error),
        clock=_clock(error),
    )
    kind = _kind(code_of(error), operation) if asked == call and answered else Unavailable
    return kind(f"{uri}: {said}" + (f" (tried {tries} times)" if tries > 1 else ""))


def _kind(code: str, operation: str) -> type[UserError]:
    """Tell what an answer is about: an object that is not as it should be, or the store."""
    if code in ABSENT:
        return Missing
    if code in DENIED and PERMISSIONS.get(operation) == "s3:GetObject":
        return Refused
    return OTHER_THAN_ASKED.get(code, Unavailable)


def _of_answer(code: str, operation: str) -> str:
    if code in DENIED and PERMISSIONS.get(operation) == "s3:GetObject":
        return REFUSED_READ
    return next((said for codes, said in ANSWERS if code in codes), OTHER_ANSWER)


def _of_failure(error: Exception) -> str:
    return next((said for kinds, said in FAILURES if isinstance(error, kinds)), SETTINGS)


def _clock(error: Exception) -> str:
    """Compare this machine's clock with the date of an answer."""
    try:
        theirs = email.utils.parsedate_to_datetime(_headers(error)["date"])
    except (KeyError, ValueError):
        return "and the server's differ by too much"
    ahead = now() - theirs
    size = timedelta(seconds=round(abs(ahead).total_seconds()))
    return f"is {size} (h:mm:ss) {'ahead of' if ahead > timedelta(0) else 'behind'} the server's"


def now() -> datetime:
    """Return the time by the clock that requests are signed with."""
    here: datetime = compat.get_current_datetime()
    return here.replace(tzinfo=UTC)


def server(endpoint: str | None) -> str:
    """Return scheme, host and port of a URL, without a user or password that stand in it."""
    if endpoint is None:
        return "the store"
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _region(error: Exception) -> str:
    named = _response(error).get("Error", {}).get("Region")
    region = _headers(error).get("x-amz-bucket-region") or named
    return f"the region {region}" if region else "another region"


def _headers(error: Exception) -> Mapping[str, Any]:
    answer = _response(error).get("ResponseMetadata", {})
    headers: Mapping[str, Any] = answer.get("HTTPHeaders", {})
    return headers


def _response(error: Exception) -> dict[str, Any]:
    """Return the server's answer; empty where there was none, for which some errors hold None."""
    return getattr(error, "response", None) or {}
