"""Files that are whole or absent: atomic writes, folders held by one process, readable errors.

A file appears under its name only after its bytes are on the disk, so a process that is killed at
any moment leaves the old file, the new one, or none, but never a part of one.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from infra.errors import UsageError, UserError

TEMPORARY_SUFFIX = ".partial"


@contextmanager
def written_by_name(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, which takes what was written there at the end.

    Whatever writes it, the file is readable to whom the umask says. An error leaves ``path`` as it
    was and no temporary file; a system error that names no file, as a full disk's, gets the name
    of ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors lets the owner alone read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        move(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


class AtomicFile:
    """A binary file that appears under its name when its `with` block ends without an error.

    Attributes:
        bytes_written: length so far.
        sha256: running hash of what was written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.bytes_written = 0
        self.sha256 = hashlib.sha256()
        self._fd = -1
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            temporary = opened.enter_context(written_by_name(self.path))
            self._fd = os.open(temporary, os.O_WRONLY)
            opened.callback(os.close, self._fd)
            self._opened = opened.pop_all()
        return self

    def write(self, data: bytes | memoryview) -> int:
        """Append ``data``; returns its length, as a binary file does (``tarfile`` relies on it)."""
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self.sha256.update(view[:written])
            self.bytes_written += written
            view = view[written:]
        return len(data)

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self.bytes_written

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> str:
    """Write a whole file atomically; returns the SHA-256 of its bytes in hex."""
    with AtomicFile(path) as file:
        file.write(data)
    return file.sha256.hexdigest()


def move(source: Path, target: Path) -> None:
    """Rename a file on the same file system, durably: the folder's entry is on disk on return."""
    os.replace(source, target)  # noqa: PTH105  (patched by the tests that fail the n-th call)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256(path: str | os.PathLike[str]) -> str:
    """Hash a file's bytes without reading it into memory at once."""
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_size(path: Path, size: int) -> bool:
    """Tell whether there is a file of this length in bytes."""
    return path.is_file() and path.stat().st_size == size


def remove_partial(folder: Path) -> None:
    """Delete the temporary files that killed processes left in ``folder`` and below."""
    if folder.is_dir():
        for path in folder.rglob(f".*{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Delete a folder and all below it, if it exists."""
    shutil.rmtree(folder, ignore_errors=not folder.exists())


def local_path(uri: str) -> Path:
    """Return the local path that a user gave.

    Raises:
        UsageError: for a URI of another kind of storage, and for a path that no record can hold.
    """
    if not uri.isascii() and os.fsencode(uri) != uri.encode("utf-8", "replace"):
        named = os.fsencode(uri).decode("utf-8", "backslashreplace")
        raise UsageError(
            f"{named}: a path that is no UTF-8 cannot be recorded; rename it, or give a folder "
            "above it (the files in an input may have any names)"
        )
    if "://" in uri:
        raise UsageError(
            f"{uri}: what is kept here is for the disk of each machine; give the path of a local "
            "folder"
        )
    return Path(uri).expanduser()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone, until the block ends or the process dies.

    Raises:
        UserError: another process holds it, or it cannot be created or written.
    """
    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+")
    except OSError as error:
        raise explained(error, folder) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{folder.parent} is being written by another process (lock {path}); "
                "wait for it to end, or give another --output"
            ) from error
        yield


def explained(error: OSError, path: str | os.PathLike[str]) -> UserError:
    """Turn an operating-system error into a message with the path and a remedy."""
    remedies = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again to resume",
        errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
        errno.EACCES: "permission denied; give a path this user may read and write",
        errno.EPERM: "permission denied; give a path this user may read and write",
        errno.EROFS: "the file system is read-only; give another path",
        errno.ENOTDIR: "a part of this path is a file, not a folder; give another path",
        errno.EEXIST: "this exists and is not a folder; give another path",
        errno.ENOENT: "no such file or folder; check the path",
    }
    where = error.filename or path
    remedy = remedies.get(error.errno or 0, error.strerror or str(error))
    return UserError(f"{os.fsdecode(where)}: {remedy}")
