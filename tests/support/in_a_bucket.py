"""What tests put into a bucket, and what they do to it there."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from infra.folders.bucket_path import BucketPath
from infra.paths import path_of, write_bytes
from infra.storage import sha256


def uploaded(folder: Path, uri: str) -> BucketPath:
    """Copy a local folder with all below it to a bucket, but for what is hidden; returns it."""
    target = path_of(uri)
    assert isinstance(target, BucketPath)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            target.folder.put_file(name.as_posix(), path, sha256(path))
    return target


def inputs_uploaded(folder: Path, uri: str) -> BucketPath:
    """Copy the images and the networks that an encoding reads; returns what holds them there."""
    for name in ("images", "vae", "predictor"):
        uploaded(folder / name, f"{uri}/{name}")
    target = path_of(uri)
    assert isinstance(target, BucketPath)
    return target


def damaged(path: BucketPath, how: Callable[[Path], object], below: Path) -> None:
    """Damage an object as `tests.support.damage` does a file; ``below`` is a folder to work in."""
    local = below / path.name
    local.write_bytes(path.read_bytes())
    how(local)
    if local.exists():
        write_bytes(path, local.read_bytes())
    else:
        path.unlink()


def move_to_another_machine(folder: Path) -> None:
    """Give this process another home, other temporary files and another working directory, empty.

    Args:
        folder: is made, and holds them.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("home", "tmp", "work"):
        (folder / name).mkdir(parents=True)
    os.environ.pop("XDG_CACHE_HOME", None)
    os.environ.update(HOME=str(folder / "home"), TMPDIR=str(folder / "tmp"))
    tempfile.tempdir = None  # it is asked for again
    os.chdir(folder / "work")
