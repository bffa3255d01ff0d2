"""Objects that appear only whole, and are known to be stored as they were sent.

Every request carries a checksum of its body, which the server compares with what it received:
SHA-256, or the older MD5 where AWS_REQUEST_CHECKSUM_CALCULATION is `when_required`. What the server
says it stored is compared with that again; a server that says nothing is asked for the bytes.

An upload in parts is recorded in the bucket, under `.unfinished/` of the folder, from when it has
an id until it is complete: so the next start, on whatever machine, finds what a killed one left,
and leaves alone what others have begun. (A process that is killed between the two leaves an upload
without parts, which takes no space.)
"""

import base64
import contextlib
import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from infra.ahead import map_ahead
from infra.errors import UserError
from infra.folders.contract import Missing, Taken
from infra.s3 import reading
from infra.s3.client import call, connection, wants_checksums
from infra.s3.errors import UNREACHABLE, code_of
from infra.s3.reading import Object

PART = 16 << 20  # bytes of a part, and of the largest object that is sent by one request
MAX_PARTS = 10_000  # of an upload, by S3's rules
THREADS = 4  # parts under way: 64 MiB of memory
UPLOADS = ".unfinished/"  # SeaweedFS keeps `.uploads` for itself


@dataclass(frozen=True)
class Checksum:
    """A digest that the server is to compute too."""

    header: str
    """Parameter of a request that carries the digest of its body."""
    field: str
    """Part of an answer in which the server gives the digest of what it stored."""
    algorithm: str
    """Its name in hashlib."""

    @classmethod
    def wanted(cls, target: Object) -> "Checksum":
        """Return the one that the AWS settings ask for."""
        if wants_checksums(target.uri):
            return cls("ChecksumSHA256", "ChecksumSHA256", "sha256")
        return cls("ContentMD5", "ETag", "md5")

    def of(self, data: bytes) -> bytes:
        """Return the digest of some bytes."""
        return hashlib.new(self.algorithm, data, usedforsecurity=False).digest()

    def sent(self, digest: bytes) -> dict[str, str]:
        """Return the parameters of a request whose body has this digest."""
        return {self.header: base64.b64encode(digest).decode()}

    def stored(self, parts: Sequence[bytes]) -> str:
        """Return what the server says of an object that came in parts with these digests.

        Of several it is the digest of their digests, with their number.
        """
        whole = parts[0] if len(parts) == 1 else self.of(b"".join(parts))
        suffix = "" if len(parts) == 1 else f"-{len(parts)}"
        if self.field == "ETag":
            return f'"{whole.hex()}{suffix}"'
        return base64.b64encode(whole).decode() + suffix

    @property
    def creation(self) -> dict[str, str]:
        """The parameters of a request that begins an upload in parts."""
        return {"ChecksumAlgorithm": "SHA256"} if self.algorithm == "sha256" else {}


def put(target: Object, data: bytes, *, exclusive: bool) -> None:
    """Write an object by one request.

    Args:
        target: the object.
        data: its bytes.
        exclusive: only if there is none yet, or one with the same bytes.

    Raises:
        Taken: with ``exclusive``, there is one with other bytes.
    """
    checksum = Checksum.wanted(target)
    digest, whole = checksum.of(data), hashlib.sha256(data).hexdigest()
    condition = {"IfNoneMatch": "*"} if exclusive else {}
    try:
        answer = call(
            "put_object",
            target.uri,
            **target.place,
            **checksum.sent(digest),
            **condition,
            Body=data,
            Metadata={"sha256": whole},
        )
    except UserError as error:
        if not exclusive or not _has_code(error, "PreconditionFailed"):
            raise
        if reading.read(target) == data:
            return
        raise Taken(f"{target.uri}: was written by another process") from error
    _verify(target, answer, checksum.field, checksum.stored([digest]), whole)


def put_file(target: Object, head: Any, path: Path, sha256: str, marks: Object) -> bool:
    """Copy a local file to an object, unless the object has its bytes already.

    Args:
        target: the object.
        head: the answer to HEAD; None if there is no such object.
        path: the local file.
        sha256: hex digest of its bytes.
        marks: where uploads that are under way are recorded, as the beginning of a key.

    Returns:
        Whether anything was sent.
    """
    checksum = Checksum.wanted(target)
    parts = _Parts.of(path, checksum, sha256)
    expected = checksum.stored(parts.digests)
    if head is not None and head["Metadata"].get("sha256") == sha256:
        with contextlib.suppress(UserError):  # it was stored wrong: it is sent again
            _verify(target, head, checksum.field, expected, sha256)
            return False
    if len(parts.digests) == 1:
        put(target, path.read_bytes(), exclusive=False)
        return True
    answer = _sent_in_parts(target, path, parts, checksum, sha256, marks)
    _verify(target, answer, checksum.field, expected, sha256)
    return True


@dataclass(frozen=True)
class _Parts:
    """How a file is divided: the length of its parts in bytes, and the digest of each."""

    size: int
    digests: list[bytes]

    @classmethod
    def of(cls, path: Path, checksum: Checksum, sha256: str) -> "_Parts":
        """Read a file.

        Raises:
            UserError: its bytes do not have this SHA-256.
        """
        length = path.stat().st_size
        size = PART * max(1, -(-length // (PART * MAX_PARTS)))
        whole, digests = hashlib.sha256(), list[bytes]()
        for start in range(0, max(length, 1), size):
            data = _bytes(path, start, size)
            whole.update(data)
            digests.append(checksum.of(data))
        if whole.hexdigest() != sha256:
            raise UserError(
                f"{path}: has the SHA-256 {whole.hexdigest()}, and {sha256} was expected; it was "
                "damaged or changed: make it again"
            )
        return cls(size, digests)


def _sent_in_parts(
    target: Object, path: Path, parts: _Parts, checksum: Checksum, sha256: str, marks: Object
) -> Any:
    """Upload a file in parts, several at a time; returns the answer that tells what was stored."""
    metadata = {"sha256": sha256}
    created = call(
        "create_multipart_upload",
        target.uri,
        **target.place,
        **checksum.creation,
        Metadata=metadata,
    )
    upload = {**target.place, "UploadId": created["UploadId"]}
    mark = Object(marks.bucket, f"{marks.key}{secrets.token_hex(8)}")
    put(mark, json.dumps(upload).encode(), exclusive=False)
    try:
        send = partial(_send, target, path, parts, checksum, upload)
        sent = list(map_ahead(send, range(len(parts.digests)), threads=THREADS))
        answer = _completed(target, upload, sent, sha256)
    except UserError as error:
        if not isinstance(error.__cause__, UNREACHABLE):
            with contextlib.suppress(UserError):  # what fails here is left to the next start
                _abort(target, upload, mark)
        raise
    call("delete_object", mark.uri, **mark.place)
    return answer


def _send(
    target: Object,
    path: Path,
    parts: _Parts,
    checksum: Checksum,
    upload: dict[str, str],
    number: int,
) -> dict[str, Any]:
    """Send the part of this number, from 0; returns what names it when the upload is completed."""
    sent = checksum.sent(parts.digests[number])
    answer = call(
        "upload_part",
        target.uri,
        **upload,
        **sent,
        PartNumber=number + 1,
        Body=_bytes(path, number * parts.size, parts.size),
    )
    named = {key: value for key, value in sent.items() if key == checksum.field}
    return {"PartNumber": number + 1, "ETag": answer["ETag"], **named}


def _completed(target: Object, upload: dict[str, str], sent: list[Any], sha256: str) -> Any:
    """Make one object of the parts; it is also well if an attempt whose answer was lost did so."""
    try:
        return call(
            "complete_multipart_upload", target.uri, **upload, MultipartUpload={"Parts": sent}
        )
    except UserError as error:
        if not _has_code(error, "NoSuchUpload"):
            raise
        head = headed(target)
        if head is None or head["Metadata"].get("sha256") != sha256:
            raise
        return head


def _abort(target: Object, upload: dict[str, str], mark: Object) -> None:
    """Remove an upload's parts, if it is still under way, and then its record."""
    try:
        call("abort_multipart_upload", target.uri, **upload)
    except UserError as error:
        if not _has_code(error, "NoSuchUpload"):
            raise
    call("delete_object", mark.uri, **mark.place)


def abort_recorded(mark: Object) -> None:
    """Remove what a killed process left of the upload that is recorded here.

    Raises:
        UserError: the record is damaged.
    """
    try:
        upload = json.loads(reading.read(mark))
        target = Object(upload["Bucket"], upload["Key"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{mark.uri}: is no record of an upload; delete this object, which no run needs"
        ) from error
    _abort(target, upload, mark)


def found(source: Object) -> Any:
    """Return the answer to HEAD of an object that is to be there.

    Raises:
        Missing: there is no such object.
        UserError: it cannot be told.
    """
    head = headed(source)
    if head is None:
        raise Missing(f"{source.uri}: there is no such object; check the name")
    return head


def headed(source: Object) -> Any:
    """Return the answer to HEAD; None if there is no such object.

    A refusal of HEAD has no body that says why, so the object is asked for to learn it; not if it
    says that something is missing, and the bucket is known not to be.

    Raises:
        UserError: it cannot be told.
    """
    try:
        return call("head_object", source.uri, **source.place, ChecksumMode="ENABLED")
    except UserError as refusal:
        if isinstance(refusal, Missing) and source.bucket in connection().buckets:
            return None
        if not isinstance(refusal.__cause__, ClientError):
            raise
    try:
        call("get_object", source.uri, **source.place)["Body"].close()
    except Missing:
        return None
    return call("head_object", source.uri, **source.place, ChecksumMode="ENABLED")


def _verify(target: Object, answer: Any, field: str, expected: str, sha256: str) -> None:
    """Compare what was stored with what was sent, by the server's digest or else by the bytes.

    Raises:
        UserError: it differs; the object is deleted, so that nobody takes it for right.
    """
    if answer.get(field) == expected:
        return
    found = hashlib.sha256()
    for data in reading.parts(target, headed(target)):
        found.update(data)
    if found.hexdigest() != sha256:
        call("delete_object", target.uri, **target.place)
        raise UserError(
            f"{target.uri}: the server stored other bytes than were sent (SHA-256 "
            f"{found.hexdigest()} for {sha256}), so the object was deleted; run the same command "
            "again, and if it happens again use another server"
        )


def _has_code(error: UserError, code: str) -> bool:
    return isinstance(error.__cause__, ClientError) and code_of(error.__cause__) == code


def _bytes(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size)
