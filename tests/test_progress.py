"""The progress bar: what is done is counted image by image, and the rate is that of the stage."""

import io
import itertools
import re
from pathlib import Path

import pytest
import rich.console

from pipelines.jobs import progress as bar
from pipelines.jobs.progress import Watched, progress, rate_and_left, tallied, under_way


def test_units_under_way_are_counted_item_by_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit that ends, or is done again after its worker died, is not counted twice."""
    monkeypatch.setattr(bar, "NOTED", 0)
    first, second = (tallied(tmp_path / name, range(4)) for name in ("a.tar", "b.tar"))
    counts = []
    for items in (first, second, first, first, second):
        next(items)
        counts.append(under_way(tmp_path))
    assert counts == [0, 0, 1, 2, 3]
    again = tallied(tmp_path / "a.tar", range(4))
    list(zip(range(2), again, strict=False))
    assert under_way(tmp_path) == 2
    assert list(again) == [2, 3]
    assert list(second) == [2, 3]
    assert under_way(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_unit_is_noted_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However quick its items are: in a bucket a note is a request."""
    clock = itertools.count(0, 0.125)
    notes: list[bytes] = []
    monkeypatch.setattr(bar.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(bar, "write_bytes", lambda _, data: notes.append(data))
    list(tallied(tmp_path / "a.tar", range(1000)))

    assert len(notes) == pytest.approx(1000 * 0.125, rel=0.15)


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "said"),
    [
        (0, 10, 5.0, ""),
        (10, 40, 5.0, "2/s  left 0:00:15"),
        (1000, 1000, 400.0, "2.5/s  left 0:00:00"),
        (70, 140_000, 10.0, "7/s  left 5:33:10"),
    ],
)
def test_the_rate_is_that_of_the_whole_stage(
    done: int, total: int, elapsed: float, said: str
) -> None:
    """However many items a unit brings at once, so that the last one is no burst."""
    assert rate_and_left(done, total, elapsed) == said


def test_the_bar_advances_before_a_unit_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal; it never goes back, and ends at the number of items."""
    screen = io.StringIO()
    console = rich.console.Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(rich.console, "Console", lambda **_: console)
    monkeypatch.setattr(bar, "POLLED", 0.001)
    monkeypatch.setattr(bar, "NOTED", 0)
    unit = tallied(tmp_path / "a.tar", range(5))
    for _ in range(4):  # three are noted
        next(unit)
    with progress("encode", Watched(5, tmp_path)) as advance:
        while "3/5" not in screen.getvalue():
            pass
        list(unit)
        advance(5)
    shown = [int(number) for number in re.findall(r"(\d)/5", screen.getvalue())]

    assert shown == sorted(shown)
    assert shown[-1] == 5
