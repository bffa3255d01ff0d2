"""A prefix in a bucket as a folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from infra.errors import UsageError
from infra.folders.contract import Entry, Missing, checked_name
from infra.s3 import reading, uploading
from infra.s3.client import call
from infra.s3.reading import Object
from infra.s3.uploading import UPLOADS, headed

MAX_KEY = 1024  # bytes of a key, by S3's rules


@dataclass(frozen=True)
class S3Folder:
    """A `Folder` whose files are objects; each method is described there.

    It holds names only: the client belongs to the process that uses it.
    """

    bucket: str
    """Name of the bucket."""
    prefix: str = ""
    """What the keys of all its files begin with, without the slash at the end."""
    parent: str | None = None
    """Prefix of the folder that this one is a child of, where its uploads are recorded too."""

    @property
    def uri(self) -> str:
        """The URI."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

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
        """Where uploads that are under way are recorded, as the beginning of a key."""
        top = self.prefix if self.parent is None else self.parent
        return Object(self.bucket, f"{top}/{UPLOADS}" if top else UPLOADS)

    def child(self, name: str) -> Self:
        """Return the folder of this name below."""
        parent = self.prefix if self.parent is None else self.parent
        return type(self)(self.bucket, self._of(name).key, parent)

    def read(self, name: str) -> bytes:
        """Return all bytes of a file."""
        return reading.read(self._of(name))

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill ``buffers`` with the bytes of a file from ``offset`` on."""
        reading.read_into(self._of(name), offset, buffers)

    def fetch(self, name: str, target: Path, sha256: str | None = None) -> None:
        """Copy a file to ``target``."""
        source = self._of(name)
        head = headed(source)
        if head is None:
            raise Missing(f"{source.uri}: there is no such object; check the name")
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
        above = f"{self.prefix}/" if self.prefix else ""
        entries = (
            Entry(key.removeprefix(above), size) for key, size in self._pages(above + prefix)
        )
        yield from sorted(
            entry
            for entry in entries
            if f"/{UPLOADS}" not in f"/{entry.name}" and not entry.name.endswith("/")
        )

    def _pages(self, start: str) -> Iterator[tuple[str, int]]:
        """Yield key and length of all objects whose key begins with ``start``."""
        token: dict[str, str] = {}
        while True:
            answer = call("list_objects_v2", self.uri, Bucket=self.bucket, Prefix=start, **token)
            yield from ((one["Key"], one["Size"]) for one in answer.get("Contents", ()))
            if not answer["IsTruncated"]:
                return
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    def size(self, name: str) -> int | None:
        """Return the length of a file in bytes, None if there is no such file."""
        head = headed(self._of(name))
        return None if head is None else int(head["ContentLength"])

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        target = self._of(name)
        call("delete_object", target.uri, **target.place)

    def abort_leftovers(self) -> int:
        """Abort the uploads that killed processes left, as this folder recorded them."""
        marks = [key for key, _ in self._pages(self._marks.key)]
        for key in marks:
            uploading.abort_recorded(Object(self.bucket, key))
        return len(marks)
