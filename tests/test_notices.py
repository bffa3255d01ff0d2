"""What a long job is told: signals and ended launchers become notices that its ranks can share."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import notices
from infra.notices import Notices
from tests.conftest import PATIENCE, ROOT

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def handlers(signals_by_default: None) -> Iterator[dict[int, object]]:
    """Check that what handled the signals before does so afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield dict(before)
    assert before == {number: signal.getsignal(number) for number in SIGNALS}


def tell(*numbers: int) -> None:
    """Send signals to this process."""
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)]
)
def test_a_job_is_told_to_end(number: int, code: int) -> None:
    """It stays told, and knows by what; nothing is raised."""
    with Notices() as told:
        assert told.take() == (False, False)
        tell(number)
        assert [told.take(), told.take()] == [(True, False)] * 2

    assert told.reason == signal.Signals(number).name
    assert told.code == code


def test_usr1_asks_for_a_save_or_the_end() -> None:
    """By choice; a save is asked for once, an end for good."""
    with Notices() as told:
        tell(signal.SIGUSR1)
        assert [told.take(), told.take()] == [(False, True), (False, False)]
    with Notices(on_usr1="end") as told:
        tell(signal.SIGUSR1)
        assert [told.take(), told.take()] == [(True, False)] * 2
    assert told.code == 143


def test_a_second_ctrl_c_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes at the same moment by way of a launcher is still the first."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Notices() as told:
        tell(signal.SIGINT, signal.SIGINT, signal.SIGTERM)
        assert told.take() == (True, False)
        clock[0] += 1.5
        with pytest.raises(KeyboardInterrupt):
            tell(signal.SIGINT)


def test_the_first_ctrl_c_says_what_comes(capfd: pytest.CaptureFixture[str]) -> None:
    """At once, by rank 0, because a step may be long."""
    with Notices():
        tell(signal.SIGINT)

    assert capfd.readouterr().err == notices.INTERRUPTED.decode()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_is_ignored_on_purpose_stays_so(
    number: signal.Signals, handlers: dict[int, object]
) -> None:
    """As by nohup, or by a shell for a job in its background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Notices() as told:
            tell(number)
            assert told.take() == (False, False)
    finally:
        signal.signal(number, before)


LAUNCHER = """
import subprocess, sys
sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))
"""
RANK = """
import os, sys, time
from pathlib import Path
from infra.notices import Notices
with Notices() as told:
    Path(sys.argv[1]).write_text(str(os.getppid()))
    while not told.take()[0] and not Path(sys.argv[2]).exists():
        time.sleep(0.02)
print(told.reason or "nothing", flush=True)
"""


@pytest.mark.parametrize("killed", ["outer", "inner", "no launcher", "no rank"])
def test_the_end_of_a_launcher_is_noticed(tmp_path: Path, killed: str) -> None:
    """Of DeepSpeed's outer process too, whose child goes on; a shell may end, as with nohup."""
    outer = tmp_path / ("a_users_script" if killed == "no launcher" else "deepspeed")
    inner, rank, born, end = (tmp_path / name for name in ("torchrun", "rank", "born", "end"))
    outer.write_text(LAUNCHER)
    inner.write_text(LAUNCHER)
    rank.write_text(RANK)
    ranks = {} if killed == "no rank" else {"RANK": "0", "WORLD_SIZE": "1"}
    process = subprocess.Popen(
        [sys.executable, *map(str, (outer, inner, rank, born, end))],
        env={**os.environ, **ranks, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE
    while not (born.exists() and born.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(int(born.read_text()) if killed == "inner" else process.pid, signal.SIGKILL)
    process.wait()
    if killed.startswith("no"):
        end.touch()
    assert process.stdout is not None

    expected = "nothing" if killed.startswith("no") else "the end of its launcher"
    assert process.stdout.read().strip() == expected
