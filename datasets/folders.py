"""What lies below a folder: every file, link and special file, in an order of its own."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from datasets.archives.found import Found


def contents(root: Path) -> Iterator[tuple[Found, int]]:
    """Yield what lies below a folder, with its modification time in nanoseconds (0 if ignored).

    Links to folders are followed last, and no folder twice, so that a folder keeps its own name
    beside a link to it, whatever order the file system has.

    Raises:
        OSError: the folder itself cannot be listed.
    """
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
