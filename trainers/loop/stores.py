"""Where the checkpoints of a run are: in a folder that all ranks see, or in a bucket.

What is in a bucket is copied: a checkpoint is written on the disks of the machines, each of which
uploads the files that it has, and the manifest comes last. Until then there is no checkpoint. To
load one, each machine downloads what it lacks. All ranks call each method here, together.
"""

from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from infra.distributed import barrier, by_first, gathered, rank, together
from infra.errors import UserError
from infra.folders.contract import Folder, Missing, Unavailable
from infra.folders.opening import open_folder
from infra.paths import AnyPath, glob, move, read_if_there, remove_tree, write_bytes
from trainers.loop.integrity import MANIFEST, Listed, damage, files_below, is_whole, listed
from trainers.loop.neighbours import Neighbours, assigned, everyone
from trainers.loop.terminal import say, warn

METRICS, UNSENT = "metrics.json", "unsent-"


class Store(Protocol):
    """The place of a run's checkpoints; a checkpoint is a folder `step-...`."""

    @property
    def where(self) -> AnyPath:
        """The folder that holds them, as a person would name it."""

    @property
    def folder(self) -> Path:
        """The folder on this machine in which they are written, and from which they are loaded."""

    @property
    def here(self) -> Neighbours:
        """The ranks that see the same `folder`."""

    def names(self) -> list[str]:
        """List the checkpoints that have a manifest, oldest first."""

    def complete(self) -> list[str]:
        """List those whose files are all there at full length, oldest first; none is read."""

    def read(self, name: str, file: str) -> bytes:
        """Return the bytes of a file of a checkpoint; empty if there is none."""

    def bring(self, name: str, below: tuple[str, ...] = ("",)) -> str:
        """Have a checkpoint in `folder`, whole by SHA-256.

        Args:
            name: of the checkpoint.
            below: of its files, those whose names begin so are enough, in one of these ways.

        Returns:
            What is damaged; or "".
        """

    def publish(self, name: str) -> None:
        """Make a checkpoint count that `folder` has with its manifest.

        Raises:
            UserError: it could not be stored; says where it waits for the next start.
        """

    def rate(self, name: str, metrics: bytes) -> None:
        """Write what a validation found to a checkpoint."""

    def keep(self, names: Collection[str]) -> None:
        """Delete the checkpoints of other names, and incomplete ones."""

    def set_aside(self, name: str) -> str:
        """Move a damaged checkpoint to a name by which nobody finds it; returns that name."""


class LocalStore:
    """A folder that all ranks see, for which see `Store`.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.where = self.folder = folder
        self.here = everyone()

    def names(self) -> list[str]:
        """List the checkpoints that have a manifest."""
        return by_first(lambda: [path.parent.name for path in _manifests(self.folder)])

    def complete(self) -> list[str]:
        """List those whose files are all there."""
        return by_first(
            lambda: [path.parent.name for path in _manifests(self.folder) if is_whole(path)]
        )

    def read(self, name: str, file: str) -> bytes:
        """Return the bytes of a file."""
        return by_first(lambda: read_if_there(self.folder / name / file) or b"")

    def bring(self, name: str, below: tuple[str, ...] = ("",)) -> str:
        """Compare all files of a checkpoint with their SHA-256."""
        return damage(self.folder / name)

    def publish(self, name: str) -> None:
        """Do nothing: with its manifest, a checkpoint counts."""

    def rate(self, name: str, metrics: bytes) -> None:
        """Write what a validation found."""
        by_first(lambda: write_bytes(self.folder / name / METRICS, metrics))

    def keep(self, names: Collection[str]) -> None:
        """Delete the others."""
        by_first(lambda: _delete_others(self.folder, names))

    def set_aside(self, name: str) -> str:
        """Move a damaged checkpoint."""

        def moved() -> str:
            aside = _free_name(self.folder, name)
            move(self.folder / name, self.folder / aside)
            return aside

        return by_first(moved)


class CopiedStore:
    """A folder in a bucket, and copies in a folder on each machine, for which see `Store`.

    Args:
        where: the folder.
        folder: of the copies.
        here: the ranks that see the same copies.
        and_files: stores, on rank 0, what belongs to a checkpoint besides; called before it counts.
    """

    def __init__(
        self,
        where: AnyPath,
        folder: Path,
        here: Neighbours,
        and_files: Callable[[], None] = lambda: None,
    ) -> None:
        self.where, self.folder, self.here = where, folder, here
        self._and_files = and_files
        self._there: Folder = open_folder(str(where))

    def names(self) -> list[str]:
        """List the checkpoints that have a manifest."""
        return by_first(lambda: _with_manifest(self._sizes()))

    def complete(self) -> list[str]:
        """List those whose files are all there."""
        return by_first(self._complete)

    def _complete(self) -> list[str]:
        sizes = self._sizes()
        found = []
        for name in _with_manifest(sizes):
            with suppress(ValueError, Missing):  # damaged, or deleted meanwhile
                files = listed(self._there.read(f"{name}/{MANIFEST}"))
                if all(sizes.get(f"{name}/{one.name}") == one.size for one in files):
                    found.append(name)
        return found

    def _sizes(self) -> dict[str, int]:
        """Return the length in bytes of every file of every checkpoint."""
        return {entry.name: entry.size for entry in self._there.list("step-")}

    def read(self, name: str, file: str) -> bytes:
        """Return the bytes of a file."""
        return by_first(lambda: self._read(name, file))

    def _read(self, name: str, file: str) -> bytes:
        try:
            return self._there.read(f"{name}/{file}")
        except Missing:
            return b""

    def bring(self, name: str, below: tuple[str, ...] = ("",)) -> str:
        """Download what this machine lacks of a checkpoint, or has with other bytes."""
        manifest, metrics = self.read(name, MANIFEST), self.read(name, METRICS)
        folder = self.folder / name
        try:
            files = [one for one in listed(manifest) if one.name.startswith(below)]
        except ValueError as error:
            return str(error)
        found = together(lambda: self._fetched(folder, self.here.share(files)))
        if problem := next(filter(None, found), ""):
            return problem
        if self.here.is_first:
            (folder / METRICS).unlink(missing_ok=True)
            if metrics:
                write_bytes(folder / METRICS, metrics)
            write_bytes(folder / MANIFEST, manifest)
        barrier()
        return ""

    def _fetched(self, folder: Path, files: list[Listed]) -> str:
        """Download files where the copies have other bytes; returns what is damaged there."""
        for one in files:
            if one.damage(folder):
                try:
                    self._there.fetch(f"{folder.name}/{one.name}", folder / one.name, one.sha256)
                except Unavailable:
                    raise
                except UserError as error:  # it is missing, or has other bytes
                    return str(error)
        return ""

    def publish(self, name: str) -> None:
        """Upload a checkpoint: each rank a share of the files that it sees, the manifest last."""
        mark = self.folder / f"{UNSENT}{name}"
        if self.here.is_first:
            write_bytes(mark, b"")
        try:
            self._send(name)
        except UserError as error:
            raise UserError(
                f"{self.where / name} could not be uploaded: {error}. The checkpoint is kept in "
                f"{self.folder / name}, and the same command uploads it at its next start"
            ) from error
        if self.here.is_first:
            mark.unlink(missing_ok=True)

    def _send(self, name: str) -> None:
        folder = self.folder / name
        files, whose = self._shared_out(name)

        def upload() -> None:
            for one in files:
                if whose.get(one.name) == rank():
                    self._there.put_file(f"{name}/{one.name}", folder / one.name, one.sha256)

        def finish() -> None:
            self._and_files()
            self._there.put(f"{name}/{MANIFEST}", (folder / MANIFEST).read_bytes())

        together(upload)
        by_first(finish)

    def _shared_out(self, name: str) -> tuple[list[Listed], dict[str, int]]:
        """Return the files of a checkpoint in copies, and the rank that is to upload each."""
        folder = self.folder / name
        files = listed((folder / MANIFEST).read_bytes())
        below = [path.relative_to(folder).as_posix() for path in files_below(folder)]
        return files, assigned([one.name for one in files], gathered(below))

    def send_waiting(self) -> None:
        """Upload a checkpoint that a run has left here, if it is newer than all that are stored."""
        marks = glob(self.folder, f"{UNSENT}*")
        waiting = {name for mine in gathered([path.name for path in marks]) for name in mine}
        newest = max(self.names(), default="")
        for name in sorted(mark.removeprefix(UNSENT) for mark in waiting):
            if name > newest and not self._sent_if_whole(name):
                continue
            if self.here.is_first:
                (self.folder / f"{UNSENT}{name}").unlink(missing_ok=True)
        barrier()

    def _sent_if_whole(self, name: str) -> bool:
        """Upload a checkpoint, unless something of it is nowhere; then the user is told."""
        manifest = next(filter(None, gathered(read_if_there(self.folder / name / MANIFEST))), b"")
        if self.here.is_first and manifest:  # another machine may have been rank 0's before
            write_bytes(self.folder / name / MANIFEST, manifest)
        barrier()
        try:
            files, whose = self._shared_out(name)
            mine = [one for one in files if whose.get(one.name, 0) == rank()]
            lacks = [said for one in mine if (said := one.damage(self.folder / name))]
        except (ValueError, FileNotFoundError) as error:
            lacks = [str(error)]
        problem = next((one for lacking in gathered(lacks) for one in lacking), "")
        if problem:
            warn(
                f"{self.folder / name}, which was not uploaded, is not whole on the machines of "
                f"this run ({problem}): it is left out"
            )
            return False
        self.publish(name)
        say(f"{self.where / name} is uploaded, as it was kept in {self.folder / name}\n")
        return True

    def rate(self, name: str, metrics: bytes) -> None:
        """Write what a validation found, here and there."""
        by_first(lambda: self._there.put(f"{name}/{METRICS}", metrics))
        if self.here.is_first:
            write_bytes(self.folder / name / METRICS, metrics)

    def keep(self, names: Collection[str]) -> None:
        """Delete the others, here and there; what is newer than all may be under way elsewhere."""

        def delete() -> None:
            newest = max(names, default="")
            for step in sorted({file.partition("/")[0] for file in self._sizes()}):
                if step not in names and step < newest:
                    _delete(self.where / step)

        by_first(delete)
        if self.here.is_first:
            _delete_others(self.folder, names)

    def set_aside(self, name: str) -> str:
        """Move a damaged checkpoint there, and delete its copies."""

        def moved() -> str:
            aside = _free_name(self.where, name)
            files = [file for file in self._sizes() if file.startswith(f"{name}/")]
            for file in sorted(files, key=lambda file: file != f"{name}/{MANIFEST}"):
                target = self.where / file.replace(name, aside, 1)
                target.parent.mkdir(parents=True, exist_ok=True)
                move(self.where / file, target)
            return aside

        aside = by_first(moved)
        if self.here.is_first:
            remove_tree(self.folder / name)
        return aside


def _manifests(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"step-*/{MANIFEST}"))


def _with_manifest(files: Collection[str]) -> list[str]:
    """Return the checkpoints that have a manifest among these files, oldest first."""
    end = f"/{MANIFEST}"
    return sorted(name.removesuffix(end) for name in files if name.endswith(end))


def _delete_others(folder: Path, names: Collection[str]) -> None:
    """Delete the checkpoints of a folder that have other names."""
    for path in folder.glob("step-*"):
        if path.name not in names:
            (folder / f"{UNSENT}{path.name}").unlink(missing_ok=True)
            _delete(path)


def _delete(checkpoint: AnyPath) -> None:
    """Delete a checkpoint, its manifest first, or a part of it might count."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    remove_tree(checkpoint)


def _free_name(folder: AnyPath, name: str) -> str:
    """Return a name for a damaged checkpoint that nothing in the folder has."""
    taken = glob(folder, f"damaged-{name}*")
    return f"damaged-{name}" + (f"-{len(taken)}" if taken else "")
