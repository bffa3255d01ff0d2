"""What a folder's files are by SHA-256: written when it is complete, compared before it is used.

The ranks share the files out, so that a checkpoint is hashed once, by all processors of the job:
1.6 GB a second for each rank, where the processor has instructions for SHA-256.
"""

import json
import os
from pathlib import Path
from typing import Any

from infra.config import pretty_json
from infra.distributed import gathered, rank, world_size
from infra.storage import has_size, sha256, write_bytes

MANIFEST = "manifest.json"


def seal(folder: Path) -> str:
    """Flush and hash every file of a folder, and write its manifest; all ranks call it.

    Returns:
        What went wrong, the same on every rank; or "".
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = gathered([path.relative_to(folder).as_posix() for path in paths])[0]
    mine, problem = {}, ""
    try:
        mine = {name: _entry(folder / name) for name in names[_mine()]}
    except OSError as error:
        problem = str(error)
    parts = gathered((mine, problem))
    problem = next((said for _, said in parts if said), "")
    if rank() == 0 and not problem:
        entries = {name: entry for part, _ in parts for name, entry in part.items()}
        files = {name: entries[name] for name in names}
        try:
            write_bytes(folder / MANIFEST, pretty_json({"files": files}))
        except OSError as error:
            problem = str(error)
    return gathered(problem)[0]


def damage(folder: Path) -> str:
    """Say what differs from the manifest, the same on every rank, or ""; all ranks call it."""
    return next(filter(None, gathered(_damage(folder))), "")


def is_whole(manifest: Path) -> bool:
    """Tell whether every file is there at its full length, without reading any."""
    try:
        return all(has_size(manifest.parent / name, size) for name, size, _ in _listed(manifest))
    except ValueError:
        return False


def _damage(folder: Path) -> str:
    """Compare this rank's share of the files."""
    try:
        for name, size, digest in _listed(folder / MANIFEST)[_mine()]:
            if not has_size(folder / name, size):
                return f"{name} is missing or cut short: {size} bytes were written"
            if sha256(folder / name) != digest:
                return f"{name} has other bytes than were written, by SHA-256"
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _listed(manifest: Path) -> list[tuple[str, int, str]]:
    """Return name, length and SHA-256 of every file.

    Raises:
        ValueError: the manifest is damaged, or by a version of this program without digests.
    """
    try:
        files: dict[str, Any] = json.loads(manifest.read_bytes())["files"]
        return [(name, int(one["bytes"]), str(one["sha256"])) for name, one in files.items()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} does not say which files there are ({error!r})") from error


def _mine() -> slice:
    """Return which of all files this rank hashes."""
    return slice(rank(), None, world_size())


def _entry(path: Path) -> dict[str, Any]:
    """Describe a file whose bytes have been flushed to the disk, which DeepSpeed does not do."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}
