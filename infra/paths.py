"""Files wherever a user has them: a path on a disk, or a URI in a bucket, by the same verbs.

    path = path_of("s3://faces/sets/ffhq")        # or path_of("sets/ffhq")
    write_bytes(path / "manifest.json", data)

Programs take `AnyPath` and need not know which it is. On a disk the verbs are those of
`infra.storage`; in a bucket they keep the same promise, that a file is whole or absent. What is
read range by range, as shards are, goes through `infra.folders`.
"""

import contextlib
import errno
import hashlib
import io
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from infra import storage
from infra.ahead import map_ahead
from infra.config import digest
from infra.folders.bucket_path import BucketPath
from infra.folders.opening import bucket_path
from infra.folders.stream import Stream
from infra.storage import AtomicFile, explained
from infra.temporary import temporary_folder

AnyPath = Path | BucketPath
MOVES = 16  # copies that a server is asked for at a time
READS = 32  # small files that are under way from a bucket at a time
BUFFER = 1 << 20  # bytes of an object that are read at a time


def path_of(text: str) -> AnyPath:
    """Return the path that a user gave.

    Args:
        text: a local path, or `s3://bucket/key`.

    Raises:
        UsageError: a URI of another kind, or a path that no record can hold.
    """
    return bucket_path(text) or storage.local_path(text)


def write_bytes(path: AnyPath, data: bytes) -> str:
    """Write a whole file, which appears only whole; returns the SHA-256 of its bytes in hex."""
    if isinstance(path, Path):
        return storage.write_bytes(path, data)
    path.parent.folder.put(path.name, data)
    return hashlib.sha256(data).hexdigest()


@contextmanager
def atomic_file(path: AnyPath) -> Iterator[AtomicFile]:
    """Yield a file to write, which appears under its name when the block ends without an error.

    What goes to a bucket is written to the folder for temporary files first, TMPDIR.
    """
    if isinstance(path, Path):
        with AtomicFile(path) as file:
            yield file
        return
    with _temporary(path.name) as local:
        with AtomicFile(local) as file:
            yield file
        path.parent.folder.put_file(path.name, local, file.sha256.hexdigest())


@contextmanager
def written_by_name(path: AnyPath) -> Iterator[Path]:
    """Yield a local path to write to; what is there at the end appears as ``path``."""
    if isinstance(path, Path):
        with storage.written_by_name(path) as temporary:
            yield temporary
        return
    with _temporary(path.name) as local:
        yield local
        path.parent.folder.put_file(path.name, local, storage.sha256(local))


@contextmanager
def written_in_place(path: AnyPath) -> Iterator[Path]:
    """Yield a local path to write what may be lost: of a kill, a part of the file may stay.

    On a disk it is ``path`` itself, which is not flushed. What goes to a bucket appears there when
    the block ends without an error.
    """
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with _temporary(path.name) as local:
        yield local
        if local.exists():
            path.parent.folder.put_file(path.name, local, storage.sha256(local))


def read_if_there(path: AnyPath) -> bytes | None:
    """Return all bytes of a file, None if there is no such file; a bucket is asked once."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def read_all(files: Sequence[AnyPath]) -> Iterator[bytes]:
    """Yield the bytes of small files in order, several read at once in a bucket.

    Raises:
        FileNotFoundError: one is not there.
    """
    is_remote = any(isinstance(path, BucketPath) for path in files)
    threads = min(READS, len(files)) if is_remote else 0
    return map_ahead(lambda path: path.read_bytes(), files, threads=threads)


@contextmanager
def fetched(path: AnyPath) -> Iterator[Path]:
    """Yield a local file with the bytes of a file: itself, or a copy for the time of the block.

    Raises:
        Missing: there is no such file in the bucket.
    """
    if isinstance(path, Path):
        yield path
        return
    with _temporary(path.name) as local:
        path.parent.folder.fetch(path.name, local)
        yield local


def opened(path: AnyPath, buffer: int = BUFFER) -> io.BufferedReader:
    """Open a file for reading and seeking.

    Args:
        path: of the file.
        buffer: bytes of a file in a bucket that are read at a time.

    Raises:
        FileNotFoundError: there is none.
    """
    if isinstance(path, Path):
        return path.open("rb")
    return io.BufferedReader(path.parent.folder.opened(path.name), buffer)


def streamed(path: AnyPath) -> BinaryIO:
    """Open a file for reading from its start to its end, which in a bucket is read ahead.

    Raises:
        FileNotFoundError: there is none.
    """
    if isinstance(path, Path):
        return path.open("rb")
    return io.BufferedReader(Stream(path.parent.folder.pieces(path.name)))


def scanned(path: AnyPath) -> io.BufferedReader:
    """Open a file whose headers are read one after another, such as those of an archive.

    In a bucket, what lies between them is read through or passed over, whichever is faster.

    Raises:
        FileNotFoundError: there is none.
    """
    if isinstance(path, Path):
        return path.open("rb")
    from infra.s3.scanning import LEAST, ScannedFile

    return io.BufferedReader(path.parent.folder.opened(path.name, ScannedFile), LEAST)


def read_range(path: AnyPath, offset: int, length: int) -> bytes:
    """Return bytes of a file; in a bucket by one request.

    Args:
        path: of the file.
        offset: of the first byte.
        length: number of bytes; on a disk there are fewer where the file ends.

    Raises:
        FileNotFoundError: there is none.
        Short: in a bucket, it ends before.
    """
    if isinstance(path, Path):
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)
    data = bytearray(length)
    path.parent.folder.read_into(path.name, offset, [memoryview(data)])
    return bytes(data)


def path_from(text: str) -> AnyPath:
    """Return the path that gave this text by `str`; nothing is refused, as a user's would be."""
    return bucket_path(text) or Path(text)


def size(path: AnyPath) -> int | None:
    """Return the length of a file in bytes, None if there is no such file."""
    if isinstance(path, Path):
        return path.stat().st_size if path.is_file() else None
    return path.size()


def has_size(path: AnyPath, length: int) -> bool:
    """Tell whether there is a file of this length in bytes."""
    return size(path) == length


def sizes(folder: AnyPath) -> dict[str, int]:
    """Return the length in bytes of every file just in a folder, by name; a bucket is asked once.

    Args:
        folder: that need not exist.
    """
    if isinstance(folder, BucketPath):
        return {one.name: one.size for one in folder.folder.files()}
    if not folder.is_dir():
        return {}
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


def glob(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """List the paths below a folder that match a pattern part by part, sorted.

    Args:
        folder: that need not exist.
        pattern: with ``*``, ``?`` and ``[...]`` in its parts, and without ``**``.
    """
    found: Iterator[AnyPath] = folder.glob(pattern)
    return sorted(found, key=str)


def first_below(folder: AnyPath, count: int) -> tuple[list[str], list[str]]:
    """Return the names of some files and of some folders just below a folder, each sorted.

    Args:
        folder: that holds them.
        count: names after which no more are asked for; the store's own page may have more.

    Raises:
        OSError: it is no folder, or cannot be read.
    """
    if isinstance(folder, BucketPath):
        files, folders = folder.folder.first(count)
    else:
        found = list(islice(folder.iterdir(), count))
        folders = [path.name for path in found if path.is_dir()]
        files = [path.name for path in found if path.name not in folders]
    return sorted(files), sorted(folders)


def children(folder: AnyPath) -> Iterator[AnyPath]:
    """Yield what is just below a folder.

    Raises:
        OSError: it is none, or cannot be read.
    """
    yield from folder.iterdir()


def sha256(path: AnyPath) -> str:
    """Hash a file's bytes, which are read, without having them all in memory.

    Raises:
        FileNotFoundError: there is none.
    """
    if isinstance(path, Path):
        return storage.sha256(path)
    digest = hashlib.sha256()
    for piece in path.parent.folder.pieces(path.name):
        digest.update(piece)
    return digest.hexdigest()


def move(source: AnyPath, target: AnyPath) -> None:
    """Move a file to another name, durably; a file in a bucket is copied there by the server.

    Killed, the same call finishes the work.

    Raises:
        TypeError: from a disk to a bucket, or back.
    """
    if isinstance(source, Path) and isinstance(target, Path):
        storage.move(source, target)
    elif isinstance(source, BucketPath) and isinstance(target, BucketPath):
        source.parent.folder.move(source.name, target.parent.folder, target.name)
    else:
        raise TypeError(f"{source} and {target} are not in one place")


def move_all(source: AnyPath, target: AnyPath, names: Sequence[str]) -> None:
    """Move those files of a folder that are there to another, several at once in a bucket."""
    there = sizes(source)
    found = [name for name in names if name in there]
    threads = 0 if isinstance(source, Path) else min(MOVES, len(found))
    for _ in map_ahead(lambda name: move(source / name, target / name), found, threads=threads):
        pass


def link(path: AnyPath, target: str) -> None:
    """Make a symbolic link, unless there is one; a bucket has none, and there nothing is made.

    Args:
        path: of the link.
        target: where it leads, relative to the folder that it is in.
    """
    if isinstance(path, Path) and not path.is_symlink():
        path.symlink_to(target)


def remove_tree(path: AnyPath) -> None:
    """Delete a folder and all below it, if it exists."""
    if isinstance(path, Path):
        storage.remove_tree(path)
    else:
        path.folder.delete_all()


def remove_partial(folder: AnyPath) -> None:
    """Delete what killed processes left of files that they were writing in a folder and below."""
    if isinstance(folder, Path):
        storage.remove_partial(folder)
    else:
        folder.folder.abort_leftovers()


@contextmanager
def exclusive(folder: AnyPath) -> Iterator[Callable[[], None]]:
    """Hold a folder for this process alone, until the block ends or the process dies.

    On a disk the others are those of all machines that see it, as far as its file system tells
    them of locks; in a bucket those of all machines.

    Yields:
        A function that refuses to go on where the folder was lost meanwhile: a process in a bucket
        that gives no sign of life for a minute, because its machine slept, is taken for dead.

    Raises:
        UserError: another process holds it, or it cannot be created or written.
    """
    if isinstance(folder, Path):
        with storage.exclusive(folder):
            yield lambda: None
        return
    from infra.s3.lease import held

    with held((folder / "lock").folder, str(folder.parent)) as lease:
        yield lease.check


def check_writable(folder: AnyPath) -> None:
    """Refuse a folder in which nothing can be written; leaves nothing there.

    Args:
        folder: that need not exist.

    Raises:
        UserError: it cannot be written.
    """
    if isinstance(folder, Path):
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not os.access(above, os.W_OK | os.X_OK) or not above.is_dir():
            code = errno.EACCES if above.is_dir() else errno.ENOTDIR
            raise explained(OSError(code, os.strerror(code), str(above)), folder)
        return
    name = f".unfinished/trial-{secrets.token_hex(8)}"
    folder.folder.put(name, b"")
    folder.folder.delete(name)


def local_twin(folder: AnyPath) -> Path:
    """Return the folder on this machine's disk for what is appended to, or sent from here later.

    It is the folder itself; for one in a bucket it is a folder of the cache that its URI names.
    """
    if isinstance(folder, Path):
        return folder
    return cache_folder() / "twins" / digest(str(folder))[:16] / folder.name


def cache_folder() -> Path:
    """Return the folder of this machine's disk for what may be fetched again.

    It is $XDG_CACHE_HOME/latent-pmrf, by default in ~/.cache, or where there is no home that can be
    written, in the folder for temporary files.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with contextlib.suppress(RuntimeError, OSError):  # no home is known, or none can be made
        home = named if named.is_absolute() else Path("~/.cache").expanduser()
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home / "latent-pmrf"
    return Path(tempfile.gettempdir(), f"latent-pmrf-{os.getuid()}")


@contextmanager
def _temporary(name: str) -> Iterator[Path]:
    with temporary_folder() as folder:
        yield folder / name
