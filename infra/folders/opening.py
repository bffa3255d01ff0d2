"""From what a user wrote to the folder that is meant."""

import re
from pathlib import Path

from infra.errors import UsageError
from infra.folders.bucket_path import BucketPath
from infra.folders.contract import Folder
from infra.folders.local import LocalFolder

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/*)")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")


def open_folder(uri: str) -> Folder:
    """Return the folder that a user named; nothing is read or written.

    Args:
        uri: a local path, or `s3://bucket/prefix`, see `bucket_path`.

    Raises:
        UsageError: it is neither.
    """
    path = bucket_path(uri)
    return LocalFolder(Path(uri).expanduser()) if path is None else path.folder


def is_uri(text: str) -> bool:
    """Tell whether a text is a URI and no local path, be it one that can be opened or not."""
    scheme = SCHEME.match(text)
    return scheme is not None and (bool(scheme[2]) or scheme[1].lower() == "s3")


def bucket_path(uri: str) -> BucketPath | None:
    """Return the path in a bucket that a user named; None for a local path.

    Args:
        uri: `s3://bucket/prefix`. Everything behind the bucket is taken as it is: spaces, `%`, `+`,
            `?` and `#` are characters of the key and are not decoded.

    Raises:
        UsageError: it is a URI, and no such one.
    """
    if not is_uri(uri) or (scheme := SCHEME.match(uri)) is None:
        return None
    if scheme[1] != "s3" or scheme[2] != "//":
        raise UsageError(
            f"{uri}: give a local path, or s3://bucket/prefix (small letters, two slashes); "
            "other storage than S3's is not supported"
        )
    bucket, _, prefix = uri[scheme.end() :].partition("/")
    prefix = prefix.rstrip("/")
    if "@" in bucket:  # what stands before it may be a secret, and is not repeated
        raise UsageError(
            "s3://...@...: a URI holds no keys; give s3://bucket/prefix, and the credentials by "
            "AWS_PROFILE or the other AWS variables"
        )
    if not BUCKET.fullmatch(bucket):
        raise UsageError(
            f"{uri}: {bucket!r} is no name of a bucket (3 to 255 letters, digits, dots, hyphens "
            "and underscores); give s3://bucket/prefix"
        )
    if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
        raise UsageError(
            f"{uri}: a part of the prefix is empty, '.' or '..'; give it without such parts"
        )
    return BucketPath(bucket, prefix)
