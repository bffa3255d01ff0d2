"""Bytes of objects: ranges that go on where a connection broke, and whole files."""

import hashlib
import io
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore import exceptions as boto

from infra.ahead import map_ahead
from infra.errors import UserError
from infra.folders.contract import Short, of_other_length
from infra.s3.client import tried
from infra.s3.retries import Attempts
from infra.storage import AtomicFile

READ = 1 << 20  # bytes that are taken from a connection at a time
PART = 8 << 20  # bytes of a request when a whole object is fetched
THREADS = 8  # requests under way when a whole object is fetched: 64 MiB of memory
Buffers = Sequence[memoryview]


@dataclass(frozen=True)
class Object:
    """Where an object lies."""

    bucket: str
    key: str

    @property
    def uri(self) -> str:
        """The URI, for messages."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def place(self) -> dict[str, str]:
        """The parameters that name it in every request."""
        return {"Bucket": self.bucket, "Key": self.key}


def read(source: Object) -> bytes:
    """Return all bytes of an object, whose digest is checked if this project wrote it.

    Raises:
        Missing: there is no such object.
        UserError: it cannot be read, or its bytes have another digest twice.
    """
    for _ in range(2):
        data = bytearray()

        def allocate(answer: Any) -> Buffers:
            data.extend(bytes(answer["ContentLength"]))  # noqa: B023  (called in this round)
            return [memoryview(data)]  # noqa: B023

        metadata = _Download(source, 0, None).run(allocate)
        expected, found = metadata.get("sha256"), hashlib.sha256(data).hexdigest()
        if expected in (None, found):
            return bytes(data)
    raise UserError(f"{source.uri}: {_differs(found, str(expected))}")


def read_into(
    source: Object,
    offset: int,
    buffers: Buffers,
    etag: str | None = None,
    length: int | None = None,
) -> None:
    """Fill ``buffers`` with an object's bytes from ``offset`` on.

    Args:
        source: the object.
        offset: first byte.
        buffers: memory of the caller, filled in order.
        etag: version that the object must have.
        length: bytes that the object must have; every answer says how many it has.

    Raises:
        Missing: there is no such object.
        Unavailable: the store cannot be asked.
        Short: it ends before the buffers are full.
        Replaced: it has another version than ``etag``, or got another meanwhile.
        UserError: it has another length.
    """
    size = sum(view.nbytes for view in buffers)
    if size:
        _Download(source, offset, offset + size, etag, length).run(lambda _: buffers)


class _Download:
    """One range of an object, over as many connections as it takes.

    Every further request asks for what has not come yet, and for the same version of the object.

    Args:
        source: the object.
        start: first byte.
        end: byte behind the last; None for the end of the object.
        etag: version that the object must have; None takes the one that is found.
        length: bytes that the whole object must have; None for any number.
    """

    def __init__(
        self,
        source: Object,
        start: int,
        end: int | None,
        etag: str | None = None,
        length: int | None = None,
    ) -> None:
        self.source, self.start, self.end, self.etag = source, start, end, etag
        self.length = length
        self.attempts = Attempts("get_object", source.uri)
        self.rest: Buffers | None = None
        self.done = 0

    def run(self, allocate: Callable[[Any], Buffers]) -> dict[str, str]:
        """Fill what ``allocate`` makes of the first answer; returns the object's metadata."""
        return tried(self.attempts, lambda client: self._once(client, allocate))

    def _once(self, client: Any, allocate: Callable[[Any], Buffers]) -> dict[str, str]:
        answer = client.get_object(**self.source.place, **self._range(), **self._version())
        body = answer["Body"]
        try:
            self._check(answer)
            if self.rest is None:
                self.rest = allocate(answer)
                self.end = self.start + sum(view.nbytes for view in self.rest)
                self.etag = answer["ETag"]
            for count in _pieces(body, _after(self.rest, self.done)):
                self.done += count
                self.attempts.progressed()
        except BaseException:
            body.close()  # the rest of this answer must not be taken for the next one
            raise
        return dict(answer["Metadata"])

    def _range(self) -> dict[str, str]:
        if self.end is None or (self.start, self.done, self.end) == (0, 0, 0):
            return {}
        return {"Range": f"bytes={self.start + self.done}-{self.end - 1}"}

    def _version(self) -> dict[str, str]:
        return {} if self.etag is None else {"IfMatch": self.etag}

    def _check(self, answer: Any) -> None:
        """Refuse an answer with other bytes than those asked for, or of an object of other length.

        The server says `bytes FIRST-LAST/LENGTH`.
        """
        if "Range" not in self._range():
            return
        assert self.end is not None
        first, found = self.start + self.done, answer.get("ContentRange", "none")
        total = found.rpartition("/")[2]
        if self.length is not None and total != str(self.length):
            raise UserError(of_other_length(self.source.uri, total, self.length))
        if not found.startswith(f"bytes {first}-{self.end - 1}/"):
            kind = UserError if found == "none" else Short
            raise kind(
                f"{self.source.uri}: bytes {first} to {self.end - 1} were asked for, and the "
                f"server sent the range {found!r}: the object is shorter than it should be (copy "
                "it anew), or the server serves no ranges"
            )


def _after(buffers: Buffers, done: int) -> Iterator[memoryview]:
    """Yield the memory behind the first ``done`` bytes, in pieces of at most `READ`."""
    for buffer in buffers:
        view, skipped = buffer.cast("B"), min(done, buffer.nbytes)
        done -= skipped
        for start in range(skipped, view.nbytes, READ):
            yield view[start : start + READ]


def _pieces(body: Any, views: Iterator[memoryview]) -> Iterator[int]:
    """Fill ``views`` from an answer; yields how many bytes came each time."""
    for view in views:
        filled = 0
        while filled < view.nbytes:
            count = body.readinto(view[filled:])
            if not count:
                raise boto.IncompleteReadError(actual_bytes=filled, expected_bytes=view.nbytes)
            filled += count
            yield count


class ObjectFile(io.RawIOBase):
    """An object as a file that is read, one version of it; wrap it in a `BufferedReader`.

    Args:
        source: the object.
        size: its length in bytes.
        etag: its version.
    """

    def __init__(self, source: Object, size: int, etag: str) -> None:
        super().__init__()
        self.name = source.uri
        self._source, self._size, self._etag = source, size, etag
        self._place = 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be sought in."""
        return True

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset, counted from the start, from here, or from the end."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"{self.name}: offset {start + offset} is before the file")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file goes, by one request; returns the number of bytes."""
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self._size - self._place)]
        read_into(self._source, self._place, [view], self._etag)
        self._place += view.nbytes
        return view.nbytes


def fetch(source: Object, head: Any, target: Path, sha256: str | None) -> None:
    """Copy an object to a local file, which appears only whole, by parallel ranges.

    Args:
        source: the object.
        head: the answer to HEAD: its length and version.
        target: path of the file.
        sha256: hex digest that the bytes must have; None takes the stored one.
    """
    expected = sha256 or head["Metadata"].get("sha256")
    with AtomicFile(target) as file:
        for data in parts(source, head):
            file.write(memoryview(data))
        if expected not in (None, file.sha256.hexdigest()):
            raise UserError(f"{source.uri}: {_differs(file.sha256.hexdigest(), expected)}")


def parts(source: Object, head: Any) -> Generator[bytearray, None, None]:
    """Yield an object's bytes in order, read ahead by parallel ranges of one version of it.

    Args:
        source: the object.
        head: the answer to HEAD: its length and version.
    """
    size = head["ContentLength"]

    def part(start: int) -> bytearray:
        data = bytearray(min(PART, size - start))
        read_into(source, start, [memoryview(data)], head["ETag"])
        return data

    return map_ahead(part, range(0, size, PART), threads=THREADS)


def _differs(found: str, expected: str) -> str:
    return f"has the SHA-256 {found}, and {expected} was expected; it was damaged: make it again"
