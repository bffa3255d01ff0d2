"""A folder on a disk of this machine, or one that is mounted here."""

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from infra.errors import UserError
from infra.folders.contract import (
    Entry,
    Missing,
    Short,
    Taken,
    checked_name,
    of_other_length,
)
from infra.storage import (
    TEMPORARY_SUFFIX,
    AtomicFile,
    explained,
    remove_partial,
    sha256,
    sync_folder,
    write_bytes,
)

CHUNK = 1 << 20  # bytes that are copied at a time


@dataclass(frozen=True)
class LocalFolder:
    """A `Folder` whose files are files; each method is described there."""

    path: Path
    """The folder; it need not exist before something is written."""

    @property
    def uri(self) -> str:
        """The path as text."""
        return str(self.path)

    def _of(self, name: str) -> Path:
        return self.path / checked_name(name)

    def child(self, name: str) -> Self:
        """Return the folder of this name below."""
        return type(self)(self._of(name))

    def read(self, name: str) -> bytes:
        """Return all bytes of a file."""
        with _explained(self._of(name)) as path:
            return path.read_bytes()

    def read_into(
        self, name: str, offset: int, buffers: Sequence[memoryview], length: int | None = None
    ) -> None:
        """Fill ``buffers`` with the bytes of a file from ``offset`` on."""
        with _explained(self._of(name)) as path, path.open("rb") as file:
            if length not in (None, found := os.fstat(file.fileno()).st_size):
                raise UserError(of_other_length(str(path), found, length))
            file.seek(offset)
            filled = sum(file.readinto(view) for view in buffers)
        wanted = sum(view.nbytes for view in buffers)
        if filled != wanted:
            raise Short(f"{path}: ends before byte {offset + wanted}; copy the file anew")

    def fetch(self, name: str, target: Path, sha256: str | None = None) -> None:
        """Copy a file to ``target``."""
        with _explained(self._of(name)) as path:
            _copy(path, target, sha256)

    def put(self, name: str, data: bytes, *, exclusive: bool = False) -> None:
        """Write a small file."""
        with _explained(self._of(name)) as path:
            if not exclusive:
                write_bytes(path, data)
            elif not _linked(path, data) and path.read_bytes() != data:
                raise Taken(f"{path}: was written by another process")

    def put_file(self, name: str, path: Path, sha256: str) -> bool:
        """Copy a local file here, unless an equal one is here already."""
        with _explained(self._of(name)) as target:
            if _has_digest(target, path.stat().st_size, sha256):
                return False
            _copy(path, target, sha256)
            return True

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield every file below whose name begins with ``prefix``, sorted by name."""
        above = prefix.rpartition("/")[0]
        with _explained(self.path / above) as top:
            files = (
                Path(folder, name)
                for folder, _, names in os.walk(top, followlinks=True)
                for name in names
                if not name.endswith(TEMPORARY_SUFFIX)
            )
            entries = [self._entry(file) for file in files]
        yield from sorted(entry for entry in entries if entry.name.startswith(prefix))

    def _entry(self, file: Path) -> Entry:
        status = file.stat()
        return Entry(str(file.relative_to(self.path)), status.st_size, status.st_mtime_ns)

    def size(self, name: str) -> int | None:
        """Return the length of a file in bytes, None if there is no such file."""
        path = self._of(name)
        return path.stat().st_size if path.is_file() else None

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        with _explained(self._of(name)) as path:
            path.unlink(missing_ok=True)

    def abort_leftovers(self) -> int:
        """Remove the temporary files of killed processes."""
        left = sum(1 for _ in self.path.rglob(f".*{TEMPORARY_SUFFIX}"))
        remove_partial(self.path)
        return left


@contextmanager
def _explained(path: Path) -> Iterator[Path]:
    """Yield the path; turn what the system says of it into a message for the user."""
    try:
        yield path
    except FileNotFoundError as error:
        raise Missing(f"{error.filename}: no such file; check the path") from error
    except OSError as error:
        raise explained(error, path) from error


def _copy(source: Path, target: Path, digest: str | None) -> None:
    with source.open("rb") as file, AtomicFile(target) as copy:
        shutil.copyfileobj(file, copy, CHUNK)
        if digest not in (None, copy.sha256.hexdigest()):
            raise UserError(
                f"{source}: has the SHA-256 {copy.sha256.hexdigest()}, and {digest} was expected; "
                "it was damaged or changed: make it again"
            )


def _has_digest(path: Path, size: int, digest: str) -> bool:
    return path.is_file() and path.stat().st_size == size and sha256(path) == digest


def _linked(path: Path, data: bytes) -> bool:
    """Write a file unless one is there, which a link tells and a rename does not; False if so."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        write_bytes(temporary, data)
        os.link(temporary, path)
        sync_folder(path.parent)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True
