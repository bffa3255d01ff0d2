"""A folder of a bucket is held by one process, whatever machine it is on, and dead ones let go."""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.paths import exclusive, path_of
from infra.s3 import lease, retries
from infra.s3.folder import S3Folder
from infra.s3.retries import Patience
from tests.conftest import free_port
from tests.support.s3_server import S3Server, use

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.usefixtures("signals_by_default"),  # of which the forked processes die
]


@pytest.fixture
def folder(tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Folder:
    """The folder of the records; a lease of a second, by a clock that counts whole ones."""
    use(monkeypatch, s3_server.endpoint)
    monkeypatch.setattr(lease, "SECONDS", 1.0)
    monkeypatch.setattr(lease, "RENEWED", 0.2)
    monkeypatch.setattr(lease, "LOOKS", 0.3)
    return S3Folder("tests", f"lease/{tmp_path.name}/.state/lock")


def output(folder: S3Folder) -> str:
    """Return what is held, as messages name it."""
    return f"s3://tests/{folder.prefix.removesuffix('/.state/lock')}"


def records(folder: S3Folder) -> list[dict[str, object]]:
    """Read all records."""
    return [json.loads(folder.read(one.name)) for one in folder.list()]


def other_machine(patch: pytest.MonkeyPatch) -> None:
    """Let this process take the processes of this machine for those of another."""
    patch.setattr(lease, "_machine", lambda: "another machine")


def hold(folder: S3Folder) -> None:
    """Hold the folder for a moment."""
    with lease.held(folder, output(folder)):
        assert len(records(folder)) == 1


def child(work: Callable[[], None]) -> int:
    """Do something in a forked process; returns its id."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(1)
    return pid


def hold_for_ever(folder: S3Folder, told: int) -> None:
    """Hold the folder, and say so by a byte."""
    with lease.held(folder, output(folder)):
        os.write(told, b".")
        while True:
            time.sleep(1)


def holding(folder: S3Folder) -> int:
    """Start a process that holds the folder; returns its id once it does."""
    reads, writes = os.pipe()
    pid = child(lambda: hold_for_ever(folder, writes))
    os.close(writes)
    assert os.read(reads, 1) == b"."
    os.close(reads)
    return pid


def end(pid: int, how: signal.Signals = signal.SIGKILL) -> int:
    """Kill a process and return what it died of."""
    with suppress(ProcessLookupError):
        os.kill(pid, how)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_second_process_is_refused_with_the_first_ones_name(
    folder: S3Folder, is_elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once on the same machine; on another one once the first has given a sign of life."""
    monkeypatch.setattr(lease, "SECONDS", 1e6)
    pid = holding(folder)
    try:
        if is_elsewhere:
            other_machine(monkeypatch)
        with pytest.raises(UserError) as refused, exclusive(path_of(f"{output(folder)}/.state")):
            pass
        assert str(refused.value) == (
            f"{output(folder)} is being written by another process ({pid} on {os.uname().nodename})"
            "; wait for it to end, or give another --output"
        )
    finally:
        end(pid)


def test_one_process_holds_a_folder_once(folder: S3Folder) -> None:
    """And may hold it again when it has let go, whether or not the store heard of that."""
    with lease.held(folder, "x"), pytest.raises(UserError, match="another process"):
        hold(folder)
    assert [record["released"] for record in records(folder)] == [True]
    hold(folder)


def test_a_killed_holder_of_this_machine_is_followed_at_once(
    folder: S3Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is asked for, so that nobody waits."""
    monkeypatch.setattr(lease, "SECONDS", 1e6)
    end(holding(folder))
    with lease.held(folder, "x"):
        assert [record["holder"]["pid"] for record in records(folder)] == [os.getpid()]  # type: ignore[index]
    assert capsys.readouterr().err == ""


def test_a_killed_holder_of_another_machine_is_followed_after_a_lease(
    folder: S3Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user is told why nothing happens; when the holder let go, nobody waits."""
    pid = holding(folder)
    end(pid)
    other_machine(monkeypatch)
    monkeypatch.setattr(lease, "SECONDS", 600.0)
    monkeypatch.setattr(lease.time, "sleep", lambda _: monkeypatch.setattr(lease, "SECONDS", -1.0))
    hold(folder)
    said = capsys.readouterr().err
    assert f"{output(folder)} was last written by process {pid} of {os.uname().nodename}" in said
    assert "waiting for a sign of life until 600 seconds have passed" in said

    monkeypatch.setattr(lease, "_machine", lambda: "a third machine")
    monkeypatch.setattr(lease, "SECONDS", 1e6)
    with lease.held(folder, output(folder)):
        pass
    assert capsys.readouterr().err == ""


def test_a_holder_that_slept_ends_itself(
    folder: S3Folder, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it wakes it finds that another one holds the folder, which keeps it."""
    pid = holding(folder)
    os.kill(pid, signal.SIGSTOP)
    other_machine(monkeypatch)
    with lease.held(folder, output(folder)) as mine:
        os.kill(pid, signal.SIGCONT)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM
        mine.check()
    said = capfd.readouterr().err
    assert f"error: {output(folder)} was taken over by another process" in said
    assert len(records(folder)) == 1


def test_a_holder_that_slept_publishes_nothing(
    folder: S3Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What must not be done by two asks first."""
    monkeypatch.setattr(lease, "RENEWED", 1e6)  # this process sleeps
    with exclusive(path_of(f"{output(folder)}/.state")) as still_mine:
        still_mine()
        with pytest.MonkeyPatch.context() as patch:
            other_machine(patch)
            hold(folder)
            with pytest.raises(UserError, match="was taken over by another process"):
                still_mine()
    assert [record["released"] for record in records(folder)] == [True]


def test_of_many_that_follow_a_dead_holder_one_wins(folder: S3Folder) -> None:
    """The others are refused."""
    end(holding(folder))
    reads, writes = os.pipe()
    pids = [child(lambda: hold_for_ever(folder, writes)) for _ in range(3)]
    lost = [os.waitpid(-1, 0)[0] for _ in range(2)]
    os.close(writes)

    assert os.read(reads, 10) == b"."
    os.close(reads)
    (left,) = set(pids) - set(lost)
    assert [record["holder"]["pid"] for record in records(folder)] == [left]  # type: ignore[index]
    end(left)


def test_a_store_that_is_away_for_a_while_takes_no_lease_away(
    folder: S3Folder, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewals that fail are tried again; at the end nobody waits for a store that is away."""
    monkeypatch.setattr(retries, "patience", lambda: Patience(unreachable=0.1))
    with lease.held(folder, "x") as mine:
        use(monkeypatch, f"http://127.0.0.1:{free_port()}")
        with pytest.raises(UserError, match="cannot be reached"):
            mine.check()
        use(monkeypatch, s3_server.endpoint)
        mine.check()
    assert [record["released"] for record in records(folder)] == [True]

    def lose_the_store() -> None:
        with lease.held(folder, "x"):
            use(monkeypatch, f"http://127.0.0.1:{free_port()}")
            folder.read("x")

    with pytest.raises(UserError, match="cannot be reached"):
        lose_the_store()
    use(monkeypatch, s3_server.endpoint)
    hold(folder)
