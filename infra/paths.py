"""Files wherever a user has them: a path on a disk, or a URI in a bucket, by the same verbs.

    path = path_of("s3://faces/sets/ffhq")        # or path_of("sets/ffhq")
    write_bytes(path / "manifest.json", data)

Programs take `AnyPath` and need not know which it is. On a disk the verbs are those of
`infra.storage`; in a bucket they keep the same promise, that a file is whole or absent. What is
read range by range, as shards are, goes through `infra.folders`.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from infra import storage
from infra.ahead import map_ahead
from infra.config import digest
from infra.errors import UserError
from infra.folders.bucket_path import BucketPath
from infra.folders.contract import Missing
from infra.folders.opening import bucket_path
from infra.folders.stream import Stream
from infra.storage import AtomicFile, explained

AnyPath = Path | BucketPath
MOVES = 8  # copies that a server is asked for at a time
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
def exclusive(folder: AnyPath) -> Iterator[None]:
    """Hold a folder for this process alone, until the block ends or the process dies.

    On a disk the others are those of all machines that see it, as far as its file system tells
    them of locks; in a bucket those of all machines.

    Raises:
        UserError: another process holds it, or it cannot be created or written.
    """
    if isinstance(folder, Path):
        with storage.exclusive(folder):
            yield
        return
    from infra.s3.lease import held

    with held((folder / "lock").folder, str(folder.parent)):
        yield


def local_copy(path: AnyPath) -> Path:
    """Return a local file or folder with what is there, kept on this machine for the next time.

    A copy is made once for all processes of a machine, below $XDG_CACHE_HOME/latent-pmrf (by
    default ~/.cache), and again when something there has changed.

    Raises:
        Missing: there is nothing in the bucket.
        UserError: it cannot be read, or the disk has no room.
    """
    if isinstance(path, Path):
        return path
    entries = [one for one in path.parent.folder.list(path.name) if _is_of(one.name, path.name)]
    if not entries:
        raise Missing(f"{path}: there is nothing in the bucket under this name; check it")
    versions = digest([str(path), *[[one.name, one.size, one.version] for one in entries]])
    copy = cache_folder() / "copies" / versions[:16]
    try:
        copy.mkdir(parents=True, exist_ok=True)
        with (copy / "lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for one in entries:
                target = copy / one.name
                if not storage.has_size(target, one.size):
                    path.parent.folder.fetch(one.name, target)
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise explained(error, copy) from error
    return copy / path.name


def local_twin(folder: AnyPath) -> Path:
    """Return the folder on this machine's disk for what is appended to, or sent from here later.

    It is the folder itself; for one in a bucket it is a folder of the cache that its URI names.
    """
    if isinstance(folder, Path):
        return folder
    return cache_folder() / "twins" / digest(str(folder))[:16] / folder.name


def _is_of(name: str, top: str) -> bool:
    return name == top or name.startswith(f"{top}/")


def cache_folder() -> Path:
    """Return the folder of this machine's disk for what may be fetched again.

    It is $XDG_CACHE_HOME/latent-pmrf, by default in ~/.cache, or where there is no home that can be
    written, in the folder for temporary files.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # no home is known
        home = Path(named) if named else Path("~/.cache").expanduser()
        above = home if home.exists() else home.parent
        if os.access(above, os.W_OK):
            return home / "latent-pmrf"
    return Path(tempfile.gettempdir(), f"latent-pmrf-{os.getuid()}")


@contextmanager
def _temporary(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="latent-pmrf-") as folder:
        yield Path(folder, name)
