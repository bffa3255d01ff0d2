"""Weights that lie in a bucket, copied to this machine's disk once for all of its processes.

Whoever loads a network asks `at_hand` where it is on this machine. A copy belongs to one version of
what is in the bucket: when that changes, the next process makes another copy. Copies may be deleted
whenever no program is starting.
"""

import fcntl
from collections.abc import Sequence
from pathlib import Path

from infra import storage
from infra.config import digest
from infra.errors import UserError
from infra.folders.bucket_path import BucketPath
from infra.folders.contract import Entry, Missing
from infra.folders.opening import is_uri
from infra.paths import AnyPath, cache_folder, path_of

CONFIG = "config.json"
"""What every folder of a network has, and what belongs to a file of weights that it lies beside."""
SIGNS = (CONFIG, ".pth")
"""Ends of names of which a folder has one that is a network's, or that of a metric's weights."""
NO_WEIGHTS = (".tar", ".parquet")
"""Ends of the names of files that are not copied: those of sets, which also have a CONFIG."""
WHOLE = "whole"


def at_hand(where: str) -> str:
    """Return what to load in the place of what a user named.

    Args:
        where: the URI of a file or folder, alone or as NAME=URI; a local path, a name of the
            Hugging Face hub, or anything else, which is returned as it is.

    Raises:
        UserError: the bucket has no such network, or it cannot be read or kept.
    """
    name, equals, rest = where.partition("=")
    if is_uri(where):
        return str(local_copy(path_of(where)))
    if equals and is_uri(rest):
        return f"{name}={local_copy(path_of(rest))}"
    return where


def local_copy(path: AnyPath) -> Path:
    """Return a local file or folder with what is there, kept on this machine for the next time.

    Of a folder the files just in it are copied; with a file the `CONFIG` beside it. A copy is made
    once for all processes of a machine, below $XDG_CACHE_HOME/latent-pmrf (by default ~/.cache),
    and appears only whole.

    Raises:
        Missing: there is no such file, and no folder of a network, in the bucket.
        UserError: it cannot be read, or this machine cannot keep it.
    """
    if isinstance(path, Path):
        return path
    while True:
        folder, entries = _listed(path)
        copy = cache_folder() / "copies" / _version(folder, entries)
        content = copy / folder.name
        try:
            copy.mkdir(parents=True, exist_ok=True)
            with (copy / "lock").open("a+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait until it is there
                if not _is_whole(copy, content, entries):
                    _fetch(folder, entries, content)
                    if _listed(path) != (folder, entries):  # files of two versions do not mix
                        storage.remove_tree(content)
                        continue
                    storage.write_bytes(copy / WHOLE, b"")
        except OSError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{path} is copied to this machine before it is loaded, and that fails: "
                f"{storage.explained(error, copy)} (XDG_CACHE_HOME names another folder for it)"
            ) from error
        return content if folder == path else content / path.name


def _listed(path: BucketPath) -> tuple[BucketPath, list[Entry]]:
    """Return the folder that holds the files of a network, and the files, with their versions."""
    if path.key:
        beside = path.parent.folder
        named = [one for one in beside.files(path.name) if one.name == path.name]
        if named:
            config = [one for one in beside.files(CONFIG) if one.name == CONFIG]
            return path.parent, [*named, *config]
    inside = path.folder.files()
    if not inside:
        raise Missing(f"{path}: there is no such file, and no folder with files; check the name")
    if not any(entry.name.endswith(SIGNS) for entry in inside):
        raise Missing(
            f"{path}: this folder is not that of a network: it has no {CONFIG}, but "
            f"{inside[0].name}{f' and {len(inside) - 1} more' if inside[1:] else ''}"
        )
    return path, [entry for entry in inside if not entry.name.endswith(NO_WEIGHTS)]


def _version(folder: BucketPath, entries: Sequence[Entry]) -> str:
    return digest([str(folder), [(one.name, one.size, one.version) for one in entries]])[:16]


def _is_whole(copy: Path, content: Path, entries: Sequence[Entry]) -> bool:
    sizes = (storage.has_size(content / entry.name, entry.size) for entry in entries)
    return (copy / WHOLE).exists() and all(sizes)


def _fetch(folder: BucketPath, entries: Sequence[Entry], content: Path) -> None:
    """Fetch all files, whatever a process that was killed has left."""
    storage.remove_tree(content)
    content.mkdir()
    for entry in entries:
        folder.folder.fetch(entry.name, content / entry.name)
