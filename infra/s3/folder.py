"""A prefix in a bucket as a folder."""

import builtins
import io
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path
from typing import Any, Self

from infra.ahead import map_ahead
from infra.errors import UsageError
from infra.folders.contract import Entry, checked_name
from infra.s3 import copying, reading, uploading
from infra.s3.client import call
from infra.s3.reading import Object, ObjectFile
from infra.s3.uploading import UPLOADS, found, headed

MAX_KEY = 1024  # bytes of a key, by S3's rules
REQUESTS = 16  # under way when a folder is removed or looked into


@dataclass(frozen=True)
class S3Folder:
    """A `Folder` whose files are objects; each method is described there.

    It holds names only: the client belongs to the process that uses it.
    """

    bucket: str
    """Name of the bucket."""
    prefix: str = ""
    """What the keys of all its files begin with, without the slash at the end."""

    @property
    def uri(self) -> str:
        """The URI."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def _key(self, name: str) -> str:
        return self._above + name

    def _of(self, name: str) -> Object:
        key = self._key(checked_name(name))
        if len(key.encode()) > MAX_KEY:
            raise UsageError(
                f"s3://{self.bucket}/{key}: has {len(key.encode())} bytes behind the bucket, and "
                f"S3 allows {MAX_KEY}; give a shorter prefix"
            )
        return Object(self.bucket, key)

    @property
    def _marks(self) -> Object:
        """Where its uploads that are under way are recorded, as the beginning of a key."""
        return Object(self.bucket, self._above + UPLOADS)

    def child(self, name: str) -> Self:
        """Return the folder of this name below."""
        return type(self)(self.bucket, self._of(name).key)

    def read(self, name: str) -> bytes:
        """Return all bytes of a file."""
        return reading.read(self._of(name))

    def read_into(
        self, name: str, offset: int, buffers: Sequence[memoryview], length: int | None = None
    ) -> None:
        """Fill ``buffers`` with the bytes of a file from ``offset`` on."""
        reading.read_into(self._of(name), offset, buffers, length=length)

    def fetch(self, name: str, target: Path, sha256: str | None = None) -> None:
        """Copy a file to ``target``."""
        source = self._of(name)
        head = found(source)
        reading.fetch(source, head, target, sha256)

    def put(self, name: str, data: bytes, *, exclusive: bool = False) -> None:
        """Write a small file."""
        uploading.put(self._of(name), data, exclusive=exclusive)

    def put_file(self, name: str, path: Path, sha256: str) -> bool:
        """Copy a local file here, unless an equal one is here already."""
        target = self._of(name)
        return uploading.put_file(target, headed(target), path, sha256, self._marks)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield every file below whose name begins with ``prefix``, sorted by name."""
        pages = self._pages(self._above + prefix)
        yield from sorted(self._entries(one for page in pages for one in page.get("Contents", ())))

    def beginning(self, count: int) -> Iterator[Entry]:
        """Yield some files below, at most ``count`` and at most a page, in the server's order."""
        page = next(self._pages(self._above, MaxKeys=count + 1))  # one may be the folder's own key
        return islice(self._entries(page.get("Contents", ())), count)

    def files(self, prefix: str = "") -> builtins.list[Entry]:
        """List the files just below whose names begin with ``prefix``, sorted by name."""
        return sorted(self._level(prefix)[0])

    def names(self, prefix: str = "") -> builtins.list[str]:
        """List the names of files and folders just below that begin with ``prefix``, sorted.

        Some stores list a folder for a while after the last object in it is gone, so that each is
        asked for.
        """
        files, folders = self._level(prefix)
        filled = map_ahead(self._holds, folders, threads=min(REQUESTS, len(folders)))
        return sorted({*(entry.name for entry in files), *compress(folders, filled)})

    def _holds(self, name: str) -> bool:
        """Tell whether there is a file below the folder of this name."""
        return next(self.child(name).beginning(1), None) is not None

    def first(self, count: int) -> tuple[builtins.list[str], builtins.list[str]]:
        """List names of files and of folders just below: a page, and further ones up to a count.

        A folder may be listed for a while after the last object in it is gone.
        """
        files, folders = self._level("", count)
        return [entry.name for entry in files], folders

    def _level(
        self, prefix: str, count: float = math.inf
    ) -> tuple[builtins.list[Entry], builtins.list[str]]:
        """List the files and the folders just below whose names begin with ``prefix``."""
        files, folders = builtins.list[Entry](), set[str]()
        for page in self._pages(self._above + prefix, Delimiter="/"):
            files.extend(self._entries(page.get("Contents", ())))
            folders |= {
                one["Prefix"].removeprefix(self._above).rstrip("/")
                for one in page.get("CommonPrefixes", ())
            }
            if len(files) + len(folders) >= count:
                break
        return files, sorted(folders - {UPLOADS.rstrip("/"), ""})

    @property
    def _above(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""

    def _entries(self, objects: Iterable[Any]) -> Iterator[Entry]:
        """Yield what a listing says of files; records of uploads and keys of folders are none."""
        for one in map(self._entry, objects):
            if f"/{UPLOADS}" not in f"/{one.name}" and one.name and not one.name.endswith("/"):
                yield one

    def _entry(self, one: Any) -> Entry:
        modified = int(one["LastModified"].timestamp() * 1000) * 1_000_000
        name = one["Key"].removeprefix(self._above)
        return Entry(name, one["Size"], modified, one["ETag"].strip('"'))

    def _pages(self, start: str, **options: Any) -> Iterator[Any]:
        """Yield the answers that list all objects whose key begins with ``start``."""
        token: dict[str, str] = {}
        while True:
            answer = call(
                "list_objects_v2",
                self.uri,
                Bucket=self.bucket,
                Prefix=start,
                **options,
                **token,
            )
            yield answer
            if not answer["IsTruncated"]:
                return
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    def size(self, name: str) -> int | None:
        """Return the length of a file in bytes, None if there is no such file."""
        entry = self.entry(name)
        return None if entry is None else entry.size

    def entry(self, name: str) -> Entry | None:
        """Return what is known of a file, None if there is no such file."""
        head = headed(self._of(name))
        if head is None:
            return None
        modified = int(head["LastModified"].timestamp()) * 1_000_000_000
        return Entry(name, int(head["ContentLength"]), modified, head["ETag"].strip('"'))

    def objects(self) -> Iterator[Entry]:
        """Yield every object below but records of uploads, in the server's order.

        Those too whose names no other method takes: with an empty part, `.` or `..`, or a slash at
        the end.
        """
        for page in self._pages(self._above):
            for one in map(self._entry, page.get("Contents", ())):
                if f"/{UPLOADS}" not in f"/{one.name}":
                    yield one

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        target = self._of(name)
        call("delete_object", target.uri, **target.place)

    def delete_all(self) -> None:
        """Remove all files below; one request each, since not every store takes a list of them."""
        names = [entry.name for entry in self.list()]
        for _ in map_ahead(self.delete, names, threads=min(REQUESTS, len(names))):
            pass

    def move(self, name: str, target: Self, new: str) -> None:
        """Move a file to another name; the server copies it. Killed, the same call finishes it."""
        source = self._of(name)
        copying.copy(source, target._of(new))
        call("delete_object", source.uri, **source.place)

    def opened(self, name: str, kind: type[ObjectFile] = ObjectFile) -> io.RawIOBase:
        """Open a file for reading; it can be sought in, and stays the version that it is now.

        Args:
            name: of the file.
            kind: how it is read; another one is `infra.s3.scanning.ScannedFile`.

        Raises:
            Missing: there is no such file.
        """
        source = self._of(name)
        head = found(source)
        return kind(source, head["ContentLength"], head["ETag"])

    def pieces(self, name: str) -> Generator[bytearray, None, None]:
        """Yield the bytes of a file in order, of the version that it is now, read ahead.

        Raises:
            Missing: there is no such file.
        """
        source = self._of(name)
        head = found(source)
        return reading.parts(source, head)

    def abort_leftovers(self) -> int:
        """Abort the uploads that killed processes left, as this folder and those below recorded."""
        marks = [
            one["Key"]
            for page in self._pages(self._above)
            for one in page.get("Contents", ())
            if f"/{UPLOADS}" in f"/{one['Key']}"
        ]
        for key in marks:
            uploading.abort_recorded(Object(self.bucket, key))
        return len(marks)
