"""What lies below a folder: every file, link and special file, or every object of a bucket.

A file has a *stamp*, another one when it is replaced: on a disk its modification time in
nanoseconds, in a bucket a number made of its ETag, which changes with its bytes and with nothing
else.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datasets.archives.found import Found
from infra.folders.bucket_path import BucketPath
from infra.folders.contract import Entry
from infra.paths import AnyPath


class Status(NamedTuple):
    """What is known of an input before it is read."""

    is_folder: bool
    size: int
    """Length in bytes; of a folder 0."""
    stamp: int
    """Of a file; of a folder 0."""


def status(path: AnyPath) -> Status:
    """Look at a path; one that names an object and what lies below it means the object.

    Raises:
        FileNotFoundError: there is nothing.
        OSError: it cannot be looked at.
    """
    if isinstance(path, Path):
        found = path.stat()
        is_folder = stat.S_ISDIR(found.st_mode)
        return Status(is_folder, found.st_size, found.st_mtime_ns)
    entry = path.parent.folder.entry(path.name) if path.key else None
    if entry is not None and (entry.size or not path.is_dir()):
        return Status(False, entry.size, stamp(entry))
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is nothing in the bucket under this name")
    return Status(True, 0, 0)


def stamp(entry: Entry) -> int:
    """Return the stamp of an object."""
    if not entry.version:
        return entry.modified
    return int(hashlib.sha256(entry.version.encode()).hexdigest()[:15], 16)


def contents(root: AnyPath) -> Iterator[tuple[Found, int]]:
    """Yield what lies below a folder, with its stamp (0 if ignored).

    Links to folders are followed last, and no folder twice, so that a folder keeps its own name
    beside a link to it, whatever order the file system has.

    Raises:
        OSError: the folder itself cannot be listed.
    """
    if isinstance(root, BucketPath):
        yield from _objects(root)
        return
    visited: set[tuple[int, int]] = set()
    links = [root]
    for folder in links:
        yield from _folder(root, folder, visited, links)


def _folder(
    root: Path, folder: Path, visited: set[tuple[int, int]], links: list[Path]
) -> Iterator[tuple[Found, int]]:
    name = folder.relative_to(root).as_posix()
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in visited:
            yield Found(name, ignored="repeated_folder", detail=f"is {folder.resolve()}"), 0
            return
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        if folder == root:
            raise
        detail = error.strerror or str(error)
        yield Found(name, ignored="unreadable_folder", detail=detail), 0
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            yield Found(path.relative_to(root).as_posix(), ignored="hidden"), 0
        elif not _is_folder(path):
            yield _entry(root, path)
        elif entry.is_symlink():
            links.append(path)
        else:
            yield from _folder(root, path, visited, links)


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _entry(root: Path, path: Path) -> tuple[Found, int]:
    name = path.relative_to(root).as_posix()
    try:
        status = path.stat()
    except OSError as error:
        return Found(name, ignored="dangling_link", detail=error.strerror or str(error)), 0
    ignored = None if stat.S_ISREG(status.st_mode) else "special_file"
    return Found(name, size=status.st_size, ignored=ignored), status.st_mtime_ns


def _objects(root: BucketPath) -> Iterator[tuple[Found, int]]:
    """Yield the objects below a prefix as the files that they would be on a disk.

    So what lies below a hidden folder is one thing, and the empty object that a console makes for a
    folder, whose key ends in a slash, is nothing.
    """
    hidden = set[str]()
    for entry in root.folder.objects():
        parts = entry.name.split("/")
        first = next((n for n, part in enumerate(parts) if _is_hidden(part)), None)
        if first is not None:
            hidden.add("/".join(parts[: first + 1]))
        elif any(part in ("", ".", "..") for part in parts):
            if entry.size:
                yield Found(entry.name, size=entry.size, ignored="impossible_name"), 0
        else:
            yield Found(entry.name, size=entry.size), stamp(entry)
    yield from ((Found(name, ignored="hidden"), 0) for name in sorted(hidden))


def _is_hidden(part: str) -> bool:
    return part.startswith(".") and part not in (".", "..")
