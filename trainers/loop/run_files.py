"""What a run in a bucket has besides checkpoints: log, settings, pictures, the finished network."""

from collections.abc import Iterator
from pathlib import Path

from infra.folders.contract import Folder, Missing
from infra.storage import TEMPORARY_SUFFIX, remove_tree, sha256, write_bytes
from infra.tracking.record import LOG, STATE

CONFIG = "config.json"
NOT_SENT = {"checkpoints", ".state"}  # folders that are not copied here
GROWING = {".jsonl", ".json"}  # small; may be written while they are read
LOCK = "lock"


class RunFiles:
    """Copies of a run's files, between its folder on rank 0's machine and its folder there.

    Args:
        folder: on this machine.
        there: in the bucket.
    """

    def __init__(self, folder: Path, there: Folder) -> None:
        self.folder, self.there = folder, there
        self._sent: dict[str, tuple[int, int]] = {}  # time and length of what was sent, by name

    def bring(self) -> None:
        """Take the stored log, and what waits for MLflow, unless the log here is the longer one.

        The log here may go on behind the stored one, if the run was killed on this machine after it
        had last been stored. Any other log here is of an older start.
        """
        try:
            stored = self.there.read(LOG)
        except Missing:
            return
        log = self.folder / LOG
        if log.exists() and log.read_bytes().startswith(stored):
            return
        remove_tree(self.folder / STATE)
        for entry in self.there.list(f"{STATE}/"):
            self.there.fetch(entry.name, self.folder / entry.name)
        write_bytes(log, stored)

    def send(self) -> None:
        """Store what has changed since the last time, the log at the end."""
        for path in self._paths():
            name = path.relative_to(self.folder).as_posix()
            try:
                self._send(name, path)
            except FileNotFoundError:  # it has arrived in MLflow meanwhile
                continue
        for entry in self.there.list(f"{STATE}/"):
            if not (self.folder / entry.name).exists():
                self.there.delete(entry.name)

    def _send(self, name: str, path: Path) -> None:
        status = path.stat()
        version = status.st_mtime_ns, status.st_size
        if self._sent.get(name) == version:
            return
        if path.suffix in GROWING:
            self.there.put(name, path.read_bytes())
        else:
            self.there.put_file(name, path, sha256(path))
        self._sent[name] = version

    def _paths(self) -> Iterator[Path]:
        """Yield the files of the run, in an order in which no record claims more than was stored.

        What lies in the folder besides, such as the output of a batch system, is not the run's.
        """
        folders = (path for path in sorted(self.folder.iterdir()) if path.is_dir())
        for folder in folders:
            if folder.name not in NOT_SENT:
                for path in sorted(folder.rglob("*"), key=_after_what_it_names):
                    is_ours = path.name != LOCK and not path.name.endswith(TEMPORARY_SUFFIX)
                    if is_ours and path.is_file():
                        yield path
        yield from (self.folder / name for name in (CONFIG, LOG) if (self.folder / name).exists())


def _after_what_it_names(path: Path) -> tuple[int, bool, Path]:
    """Order the files of a folder: a configuration after the weights and folders it speaks of."""
    return -len(path.parts), path.suffix == ".json", path
