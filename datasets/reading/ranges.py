"""Byte ranges of shards, straight into memory that the caller owns.

`LocalFiles` reads the files of a folder; `CachedFiles` keeps what other `Ranges` read, up to a
limit of bytes, in a folder that processes and sets may share (`Cache`). Both read at explicit
offsets only (`preadv`), so threads and forked processes may use one object; a pickled one opens its
files anew.
"""

import fcntl
import functools
import os
import secrets
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from datasets.shards import BLOCK
from infra.errors import UsageError, UserError
from infra.folders.pool import Request
from infra.storage import TEMPORARY_SUFFIX, explained, has_size

MAX_OPEN = 256  # descriptors per object; a process usually may have 1024
AT_ONCE = 256  # members that are asked for together
T = TypeVar("T")


class UnreadableRange(UserError):  # noqa: N818  (counted against a budget before it is a failure)
    """Bytes of a shard that are missing or not what they should be; the message names the shard."""


class Ranges(ABC):
    """A source of the bytes of a set's shards."""

    takes_processor = False
    """Whether to read takes so much of a processor that other processes had better do it: a pair of
    512 KiB takes boto3 2 ms, most of them in the interpreter, and a disk 0.1 ms, in the kernel."""

    @abstractmethod
    def read_many(self, requests: Sequence[Request]) -> Iterator[UnreadableRange | None]:
        """Fill the memory of many requests; yields what is wrong with each, None if nothing is.

        The answers come in the order of the requests. A source on a disk reads a range when its
        answer is asked for; a distant one reads all of them at once.

        Raises:
            UserError: where the shards lie cannot be asked, which is no fault of theirs.
        """

    def read(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill ``buffers``, one after another, with the bytes of shard ``name`` from ``offset``.

        Args:
            name: name of the shard.
            offset: first byte to read.
            buffers: memory to fill, of bytes.

        Raises:
            UnreadableRange: the shard is missing, or has another length than it must have.
            UserError: as for `read_many`.
        """
        for error in self.read_many([Request(name, offset, buffers)]):
            if error is not None:
                raise error


class _Descriptor:
    """An open file, closed with its last user, so never while a thread still reads from it."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class LocalFiles(Ranges):
    """Shards in a folder.

    Args:
        folder: the folder that holds them.
        sizes: the length in bytes that each shard must have, by name.
    """

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        self.folder = folder
        self.sizes = dict(sizes)
        self._opened = functools.lru_cache(MAX_OPEN)(self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.sizes)

    def _open(self, name: str) -> _Descriptor:
        path = self.folder / name
        try:
            file = _Descriptor(path)
            size = os.fstat(file.number).st_size
        except OSError as error:
            raise UnreadableRange(
                f"{path}: {error.strerror}; bring the shard back, or make the set again"
            ) from error
        if size != self.sizes[name]:
            raise UnreadableRange(
                f"{path}: {size} bytes, the manifest says {self.sizes[name]}; copy the shard anew"
            )
        return file

    def read_many(self, requests: Sequence[Request]) -> Iterator[UnreadableRange | None]:
        """Fill the memory of requests, one after the other; see `Ranges`."""
        for name, offset, buffers in requests:
            try:
                self._read(name, offset, buffers)
            except UnreadableRange as error:
                yield error
            else:
                yield None

    def _read(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        file = self._opened(name)
        try:
            complete = read_fully(file.number, offset, buffers)
        except OSError as error:
            raise UnreadableRange(f"{self.folder / name}: {error.strerror}") from error
        if not complete:
            raise UnreadableRange(
                f"{self.folder / name}: ends before byte "
                f"{offset + sum(view.nbytes for view in buffers)}; copy the shard anew"
            )


def read_fully(descriptor: int, offset: int, buffers: Sequence[memoryview]) -> bool:
    """Fill all buffers from a file, however the kernel splits the read; False if the file ends."""
    wanted = sum(map(len, buffers))
    done = os.preadv(descriptor, buffers, offset)
    while done < wanted:
        rest, skip = [], done
        for view in buffers:
            rest.append(view[min(skip, view.nbytes) :])
            skip -= min(skip, view.nbytes)
        count = os.preadv(descriptor, [view for view in rest if view.nbytes], offset + done)
        if count == 0:
            return False
        done += count
    return True


class Place(NamedTuple):
    """Where a member of a shard is, by the index."""

    shard: str
    """Name of the shard."""
    name: str
    """Of the member."""
    offset: int
    """First byte of the content, behind the header."""
    size: int
    """Of the content in bytes."""
    crc32: int | None = None
    """Of the content; None where the set has no checksums."""


def read_member(
    files: Ranges, shard: str, name: str, offset: int, size: int, crc32: int | None = None
) -> bytes:
    """Read a member of a shard where the index has it; the arguments are those of a `Place`.

    Raises:
        UnreadableRange: the shard is missing or damaged, or has something else there.
    """
    (found,) = read_members(files, [Place(shard, name, offset, size, crc32)])
    return readable(found)


def read_members(files: Ranges, places: Iterable[Place]) -> Iterator[bytes | UnreadableRange]:
    """Yield the content of members, or what is wrong with them, in order.

    Args:
        files: the shards.
        places: of the members; `AT_ONCE` of them are read together, and are in memory together.
    """
    waiting = iter(places)
    while some := list(islice(waiting, AT_ONCE)):
        memory = [(bytearray(BLOCK), bytearray(place.size)) for place in some]
        requests = [
            Request(place.shard, place.offset - BLOCK, [memoryview(head), memoryview(content)])
            for place, (head, content) in zip(some, memory, strict=True)
        ]
        errors = files.read_many(requests)
        for place, (head, content), error in zip(some, memory, errors, strict=True):
            yield error or _wrong(place, head, content) or bytes(content)


def _wrong(place: Place, head: bytearray, content: bytearray) -> UnreadableRange | None:
    if not names_member(head, place.name.encode()):
        return UnreadableRange(
            f"{place.shard}: {place.name} is not where the index has it; copy the set anew"
        )
    if place.crc32 is not None and zlib.crc32(content) != place.crc32:
        return flipped(place.shard, place.name)
    return None


def readable(found: T | UnreadableRange) -> T:
    """Return what was read.

    Raises:
        UnreadableRange: it could not be read.
    """
    if isinstance(found, UnreadableRange):
        raise found
    return found


def flipped(shard: str, name: str) -> UnreadableRange:
    """Return the error for a member whose CRC-32 is not the one that it was written with."""
    return UnreadableRange(
        f"{shard}: {name}: not the checksum that it was written with, so bits of it have changed; "
        "copy the shard anew"
    )


def names_member(header: bytes | bytearray | memoryview, name: bytes) -> bool:
    """Tell whether a USTAR header of 512 bytes is that of the member called ``name``."""
    stored = bytes(header[:100]).rstrip(b"\0")
    if len(name) > 100:
        stored = bytes(header[345:500]).rstrip(b"\0") + b"/" + stored
    return stored == name


class CachedFiles(Ranges):
    """Shards of a slower storage, whose ranges are kept on the local disk once they were read.

    Exactly the range asked for is fetched and kept. Under a global shuffle the next read of a shard
    may be anywhere in it, so with a limit below the size of the set whole shards would be fetched
    for one sample each. The least recently used ranges are deleted first, until nine tenths of the
    limit remain, because finding them means listing the folder.

    Args:
        folder: the cache; processes of one machine share it by giving the same folder.
        files: the shards where they are slow to read.
        limit: number of bytes that the folder may hold.
        owner: prefix that tells the shards of a set from shards of the same name in other sets.
    """

    def __init__(self, folder: Path, files: Ranges, *, limit: int, owner: str = "") -> None:
        self.folder = folder
        self.files = files
        self.limit = limit
        self.owner = owner
        self.takes_processor = files.takes_processor

    def __reduce__(self) -> tuple[Any, ...]:
        make = functools.partial(type(self), limit=self.limit, owner=self.owner)
        return make, (self.folder, self.files)

    def read_many(self, requests: Sequence[Request]) -> Iterator[UnreadableRange | None]:
        """Fill the memory of requests; what is not kept is fetched at once; see `Ranges`."""
        absent = [one for one in requests if not has_size(self._path(one), one.size)]
        fetched = self._fetched(absent)
        rest = iter(absent)
        missing = next(rest, None)
        for request in requests:
            if request is missing:
                missing = next(rest, None)
                yield next(fetched)
            elif self._kept(self._path(request), request.buffers):
                yield None
            else:  # another process has deleted it meanwhile
                yield from self._fetched([request])

    def _path(self, request: Request) -> Path:
        return self.folder / f"{self.owner}{request.name}" / f"{request.offset}-{request.size}"

    def _fetched(self, requests: Sequence[Request]) -> Iterator[UnreadableRange | None]:
        """Fill the memory of requests from the slower storage, and keep what came."""
        for request, error in zip(requests, self.files.read_many(requests), strict=True):
            if error is None:
                self._keep(self._path(request), request)
            yield error

    def _kept(self, path: Path, buffers: Sequence[memoryview]) -> bool:
        try:
            file = _Descriptor(path)
            os.utime(file.number)  # the time that "least recently used" goes by
            # A file that a power failure cut short does not count: it is fetched and replaced.
            return read_fully(file.number, 0, buffers)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise explained(error, path) from error

    def _keep(self, path: Path, request: Request) -> None:
        """Add a range; its bytes are counted first, so a killed process can only count too many."""
        if request.size > self.limit:
            raise UsageError(
                f"cache {self.folder}: a limit of {self.limit} bytes cannot hold one read of "
                f"{request.size} bytes; raise the limit"
            )
        temporary = path.with_name(f".{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / "bytes") as counter:
                held = int.from_bytes(os.pread(counter, 8, 0), "little") + request.size
                if held > self.limit:
                    least = max(0, self.limit * 9 // 10 - request.size)
                    held = self._evict(least) + request.size
                os.pwrite(counter, held.to_bytes(8, "little"), 0)
                with temporary.open("wb") as file:
                    file.writelines(request.buffers)  # not flushed: a crash costs a fetch
                temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise explained(error, path) from error

    def _evict(self, target: int) -> int:
        """Delete the oldest ranges until at most ``target`` bytes remain; returns what remains.

        Runs under the lock, so every temporary file it meets was left by a killed process.
        """
        ages = []
        for shard in (entry for entry in os.scandir(self.folder) if entry.is_dir()):
            for entry in os.scandir(shard):
                if entry.name.endswith(TEMPORARY_SUFFIX):
                    Path(entry).unlink()
                    continue
                status = entry.stat()
                ages.append((status.st_mtime_ns, entry.path, status.st_size))
        held = sum(size for _, _, size in ages)
        for _, path, size in sorted(ages):
            if held <= target:
                break
            Path(path).unlink()
            held -= size
        return held


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder on a fast disk that keeps what is read of sets on slow storage."""

    folder: Path
    """The folder, shared by all sets and processes of a machine."""
    limit: int
    """Number of bytes that it may hold."""

    def over(self, files: Ranges, digest: str) -> CachedFiles:
        """Read the shards of the set with this digest through the cache."""
        return CachedFiles(self.folder, files, limit=self.limit, owner=f"{digest[:16]}-")


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open a file that one process and thread at a time may hold; yields its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
