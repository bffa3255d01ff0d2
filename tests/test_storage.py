"""Files are whole or absent."""

import errno
import hashlib
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infra import storage
from infra.errors import UsageError, UserError
from models.checkpoint import save_checkpoint
from models.vae.folder import save_sim_vae
from tests.conftest import PATIENCE
from tests.support import tiny_vae


def test_a_file_is_not_there_until_it_is_whole(tmp_path: Path) -> None:
    """While it is written only a temporary name exists, and the hash is that of the bytes."""
    target = tmp_path / "deep" / "file"
    with storage.AtomicFile(target) as file:
        file.write(b"one")
        assert not target.exists()
        file.write(memoryview(b"two"))
        assert file.tell() == 6

    assert target.read_bytes() == b"onetwo"
    assert file.sha256.hexdigest() == hashlib.sha256(b"onetwo").hexdigest()
    assert [path.name for path in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("writer", ["write_bytes", "move", "save_checkpoint"])
def test_bytes_are_on_the_disk_before_the_name_and_the_name_on_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    """Flush the file, rename it, flush the folder: a power failure leaves a whole file or none.

    Flushes do nothing in tests (`conftest`); here they are noted, with the length of the file.
    """
    done: list[tuple[str, str, int]] = []
    replace = os.replace

    def flushed(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        done.append(("flush", name, os.fstat(descriptor).st_size))

    def renamed(source: str | Path, target: str | Path) -> None:
        done.append(("rename", Path(target).name, Path(source).stat().st_size))
        replace(source, target)

    (tmp_path / "before").write_bytes(b"data")
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    target = tmp_path / "folder" / "file"
    if writer == "save_checkpoint":
        save_checkpoint(target.parent, {"weight": torch.zeros(3)}, {"width": 3})
    elif writer == "write_bytes":
        storage.write_bytes(target, b"data")
    else:
        target.parent.mkdir()
        storage.move(tmp_path / "before", target)
    files = {path.name: path.stat().st_size for path in target.parent.iterdir()}
    order = [kind for kind, _, _ in done]

    ours = ["rename", "flush"] if writer == "move" else ["flush", "rename", "flush"]
    assert order == ours * len(files)
    for first in range(0, len(done), len(ours)):
        *flush, rename, folder = done[first : first + len(ours)]
        assert rename[2] == files[rename[1]]
        assert [size for _, _, size in flush] == [rename[2]] * len(flush)
        assert folder[1] == "folder"


def test_an_error_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    """What was there before stays readable."""
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fail() -> None:
        with storage.AtomicFile(target) as file:
            file.write(b"new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()

    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_said_with_the_file_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's error for a write names no file; ours does."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "write", full)
    with pytest.raises(OSError, match="No space") as caught:
        storage.write_bytes(tmp_path / "shard.tar", b"data")
    monkeypatch.undo()

    assert str(storage.explained(caught.value, "x")).startswith(f"{tmp_path}/shard.tar: the disk")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_can_be_cleared(tmp_path: Path) -> None:
    """Only temporary names go."""
    (tmp_path / ".set.abc.partial").write_bytes(b"half")
    (tmp_path / "keep").write_bytes(b"x")
    storage.remove_partial(tmp_path)
    storage.remove_partial(tmp_path / "absent")

    assert [path.name for path in tmp_path.iterdir()] == ["keep"]


def _hold(folder: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with storage.exclusive(folder):
        ready.set()
        signal.pause()  # until it is killed


def test_a_folder_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    """A killed job does not lock its successor out."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "state", ready))
    holder.start()
    assert ready.wait(PATIENCE)
    with (
        pytest.raises(UserError, match="another process"),
        storage.exclusive(tmp_path / "state"),
    ):
        pass
    holder.kill()
    holder.join()
    with storage.exclusive(tmp_path / "state"):
        pass


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOENT, 9999])
def test_every_system_error_is_said_with_its_path(code: int) -> None:
    """The path comes first, then what to do."""
    message = str(storage.explained(OSError(code, "reason"), "/some/where"))

    assert message.startswith("/some/where: ")
    assert len(message) > len("/some/where: ")


def test_remote_paths_are_refused_by_name() -> None:
    """A bucket is not mistaken for a folder called s3:."""
    with pytest.raises(UsageError, match="s3://bucket/set"):
        storage.local_path("s3://bucket/set")


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_are_readable_to_whom_the_umask_says(tmp_path: Path, umask: int) -> None:
    """Whoever writes them: a group's set is the group's, whatever a library makes of its files."""
    vae, tensors = tiny_vae.build(), {"x": torch.zeros(2)}
    before = os.umask(umask)
    try:
        storage.write_bytes(tmp_path / "bytes", b"1")
        with storage.written_by_name(tmp_path / "moments.safetensors") as path:
            save_file(tensors, path)
        save_checkpoint(tmp_path / "network", tensors, {})
        save_sim_vae(vae, tmp_path / "vae")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]

    assert len(files) == 6
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {
        path.name: 0o666 & ~umask for path in files
    }
