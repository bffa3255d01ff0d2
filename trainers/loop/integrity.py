"""What a folder's files are by SHA-256: written when it is complete, compared before it is used.

The ranks share the files out, so that a checkpoint is hashed once, by all processors of the job:
1.6 GB a second for each rank, where the processor has instructions for SHA-256. Machines that share
no folder each hash the files that they have, and each has the manifest of all.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from infra.config import pretty_json
from infra.distributed import gathered, rank
from infra.storage import has_size, sha256, write_bytes
from trainers.loop.neighbours import Neighbours, assigned, everyone

MANIFEST = "manifest.json"


class Listed(NamedTuple):
    """A file as the manifest has it."""

    name: str
    size: int
    """In bytes."""
    sha256: str
    """In hex."""

    def damage(self, folder: Path) -> str:
        """Say what differs from the file in a folder, or ""."""
        if not has_size(folder / self.name, self.size):
            return f"{self.name} is missing or cut short: {self.size} bytes were written"
        if sha256(folder / self.name) != self.sha256:
            return f"{self.name} has other bytes than were written, by SHA-256"
        return ""


def seal(folder: Path, here: Neighbours | None = None) -> str:
    """Flush and hash every file of a folder, and write its manifest; all ranks call it.

    Args:
        folder: a path; where machines share no folder, each has its own of this name.
        here: the ranks that see the same folder; by default all do.

    Returns:
        What went wrong, the same on every rank; or "".
    """
    names = sorted(path.relative_to(folder).as_posix() for path in files_below(folder))
    seen = gathered(names)
    names = sorted({name for mine in seen for name in mine})
    mine, problem = {}, ""
    try:
        whose = assigned(names, seen)
        mine = {name: _entry(folder / name) for name in names if whose[name] == rank()}
    except OSError as error:
        problem = str(error)
    parts = gathered((mine, problem))
    problem = next((said for _, said in parts if said), "")
    if (here or everyone()).is_first and not problem:
        entries = {name: entry for part, _ in parts for name, entry in part.items()}
        files = {name: entries[name] for name in names}
        try:
            write_bytes(folder / MANIFEST, pretty_json({"files": files}))
        except OSError as error:
            problem = str(error)
    return next(filter(None, gathered(problem)), "")


def damage(folder: Path, here: Neighbours | None = None) -> str:
    """Say what differs from the manifest, the same on every rank, or ""; all ranks call it.

    Args:
        folder: as of `seal`.
        here: as of `seal`.
    """
    return next(filter(None, gathered(_damage(folder, here or everyone()))), "")


def is_whole(manifest: Path) -> bool:
    """Tell whether every file is there at its full length, without reading any."""
    try:
        files = listed(manifest.read_bytes())
        return all(has_size(manifest.parent / one.name, one.size) for one in files)
    except (OSError, ValueError):
        return False


def _damage(folder: Path, here: Neighbours) -> str:
    """Compare this rank's share of the files."""
    try:
        mine = here.share(listed((folder / MANIFEST).read_bytes()))
        return next(filter(None, (one.damage(folder) for one in mine)), "")
    except (OSError, ValueError) as error:
        return str(error)


def listed(manifest: bytes) -> list[Listed]:
    """Read a manifest.

    Raises:
        ValueError: it is damaged, or by a version of this program without digests.
    """
    try:
        files: dict[str, Any] = json.loads(manifest)["files"]
        return [Listed(name, int(one["bytes"]), str(one["sha256"])) for name, one in files.items()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} does not say which files there are ({error!r})") from error


def files_below(folder: Path) -> Sequence[Path]:
    """Return the files of a folder and of the folders in it."""
    return [path for path in folder.rglob("*") if path.is_file()]


def _entry(path: Path) -> dict[str, Any]:
    """Describe a file whose bytes have been flushed to the disk, which DeepSpeed does not do."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}
