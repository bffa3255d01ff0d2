"""Where a run is: its folder on this machine, and its checkpoints, which all machines share.

A run whose `--output` is in a bucket is worked on in a folder of this machine's disk, where
everything lies as in a local `--output`. What is finished is copied to the bucket, and what this
machine lacks is copied from there. The bucket counts: the folder may be empty, as on another
machine, and it may hold a checkpoint that could not be uploaded.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from infra.distributed import by_first, together
from infra.errors import UsageError
from infra.folders.contract import Folder, Missing
from infra.folders.opening import open_folder
from infra.paths import (
    AnyPath,
    exclusive,
    local_twin,
    path_of,
    remove_partial,
    write_bytes,
)
from infra.storage import local_path
from trainers.loop.config import LoopConfig
from trainers.loop.neighbours import everyone, neighbours
from trainers.loop.run_files import RunFiles
from trainers.loop.stores import CopiedStore, LocalStore, Store

CHECKPOINTS, STATE = "checkpoints", ".state"
OTHER = f"{STATE}/other"
"""Below a run's folder on this machine: checkpoints of other runs that it begins from."""


@dataclass(frozen=True)
class Place:
    """A run's place, held by this job."""

    folder: Path
    """The run's folder on this machine."""
    store: Store
    """Of its checkpoints."""
    files: RunFiles | None = None
    """Copies of its other files; None where the run is in its folder alone."""

    def begin(self) -> None:
        """Get what another machine, or an earlier start of this one, has left of the run."""
        if isinstance(self.store, CopiedStore):
            self.store.send_waiting()
        if self.files:
            by_first(self.files.bring)

    def send_files(self) -> None:
        """Store what the run has besides checkpoints; all ranks call it."""
        if self.files:
            by_first(self.files.send)


def work_folder(loop: LoopConfig) -> Path:
    """Return the folder on this machine in which a run is worked on."""
    return local_path(loop.work) if loop.work else local_twin(path_of(loop.output))


@contextmanager
def held(loop: LoopConfig) -> Iterator[Place]:
    """Hold the place of a run for this job; all ranks enter it together.

    Raises:
        UserError: another job holds it, it cannot be written, or machines do not see it.
    """
    home, folder = path_of(loop.output), work_folder(loop)
    with ExitStack() as stack:

        def take() -> None:
            stack.enter_context(exclusive(folder / STATE))
            write_bytes(folder / STATE / "pid", f"{os.getpid()}\n".encode())
            if home != folder:
                stack.enter_context(exclusive(home / STATE))
                refuse_unusable(open_folder(str(home)))
                remove_partial(home)

        by_first(take)
        here = neighbours(folder / STATE)
        if home == folder:
            if not here.is_everyone:
                raise UsageError(
                    f"--output {loop.output}: not all ranks see this folder; give one that all "
                    "machines share, or a folder in a bucket, s3://BUCKET/RUN"
                )
            yield Place(folder, LocalStore(folder / CHECKPOINTS))
            return
        together(lambda: _claim(folder, home) if here.is_first else None)
        files = RunFiles(folder, open_folder(str(home)))
        store = CopiedStore(home / CHECKPOINTS, folder / CHECKPOINTS, here, files.send)
        yield Place(folder, store, files)


def opened(checkpoints: AnyPath, copies: Path) -> Store:
    """Open the checkpoints of any run, to read them; all ranks call it.

    Args:
        checkpoints: the folder.
        copies: for those that are not on a disk.
    """
    if isinstance(checkpoints, Path):
        return LocalStore(checkpoints)
    return CopiedStore(checkpoints, copies, neighbours(copies))


def looked_at(loop: LoopConfig) -> Store:
    """Return the checkpoints of a run that is not to be changed; checks that a bucket could be.

    Raises:
        UserError: the bucket cannot be read and written.
    """
    home, folder = path_of(loop.output), work_folder(loop)
    if home == folder:
        return LocalStore(folder / CHECKPOINTS)
    by_first(lambda: refuse_unusable(open_folder(str(home))))
    return CopiedStore(home / CHECKPOINTS, folder / CHECKPOINTS, everyone())


def refuse_unusable(folder: Folder) -> None:
    """Write, read, list and delete a file, so that a missing permission is known before the work.

    Raises:
        UserError: one of these was refused.
    """
    name = f"{STATE}/probe"
    folder.put(name, b"")
    try:
        with suppress(Missing):  # another process may be looking too
            folder.read(name)
        list(folder.list(name))
    finally:
        folder.delete(name)


def _claim(folder: Path, home: AnyPath) -> None:
    """Note whose the folder is, so that two runs do not take each other's checkpoints.

    What a killed process left of a download goes.
    """
    mark = folder / STATE / "output"
    if mark.exists():
        owner = mark.read_text()
        if owner != str(home):
            raise UsageError(f"--work {folder} is of the run {owner}; give another folder")
    elif (folder / CHECKPOINTS).exists():
        raise UsageError(
            f"--work {folder} holds a run that is in no bucket; give another folder, and "
            f"--resume {folder} to go on from that run"
        )
    write_bytes(mark, str(home).encode())
    remove_partial(folder)
