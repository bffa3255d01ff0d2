"""Temporary files of a process that was killed are removed by the next one; others stay."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from infra import temporary
from infra.temporary import SETTLED, temporary_folder
from tests.conftest import PATIENCE

FORK = multiprocessing.get_context("fork")


def dies(how: int) -> None:
    """Write a temporary file, and die with it or end."""
    with temporary_folder() as folder:
        (folder / "train-000000.tar").write_bytes(b"half of a shard")
        if how:
            os.kill(os.getpid(), how)


@pytest.mark.parametrize("how", [0, signal.SIGKILL])
@pytest.mark.forks
def test_what_a_killed_process_left_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: int
) -> None:
    """But not what a living one writes, however long it takes, or what is not ours."""
    monkeypatch.setattr(temporary.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "latent-pmrf-0").mkdir()
    (tmp_path / f"{temporary.PREFIX}link").symlink_to(tmp_path / "latent-pmrf-0")
    kept = set(tmp_path.iterdir())
    process = FORK.Process(target=dies, args=(how,))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -how
    left = set(tmp_path.iterdir()) - kept
    assert len(left) == (1 if how else 0)

    with temporary_folder() as mine:
        for folder in (mine, *left, *kept):
            os.utime(folder, (0, 0))
        temporary._remove_abandoned.cache_clear()
        with temporary_folder() as other:
            assert set(tmp_path.iterdir()) == {mine, other, *kept}
    assert set(tmp_path.iterdir()) == kept
    assert SETTLED >= 60
