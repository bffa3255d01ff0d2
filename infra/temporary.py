"""Folders for temporary files, which do not outlive their process for long.

A process that is killed cannot remove what it was writing, which may be a shard of gigabytes. The
next process of this user on this machine does so.
"""

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "latent-pmrf-files-"
SETTLED = 60.0  # seconds after which a folder's process has locked it, if it lives


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder below TMPDIR, which is gone at the end."""
    _remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, _opened(Path(folder)) as number:
        fcntl.flock(number, fcntl.LOCK_SH)
        yield Path(folder)


@functools.cache  # once for each process
def _remove_abandoned() -> None:
    """Remove the folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, in use, or removed by another process
            _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    with _opened(folder) as number:
        status = os.fstat(number)
        if status.st_uid == os.getuid() and time.time() - status.st_mtime > SETTLED:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield number
    finally:
        os.close(number)
