"""What the loop shows of a validation and on the terminal, if there is one."""

import os
import sys

import pytest

from trainers.loop import terminal, validation
from trainers.loop.validation import Bar, readable


def test_numbers_are_a_line_for_each_metric() -> None:
    """What belongs to a metric stands in its line; the one that chooses the best is marked."""
    metrics = {"psnr": 26.31, "lpips": 0.2207, "psnr_lq": 22.0, "latent_std": 1.0}
    metrics |= {"brisque": 12.5, "brisque_hq": 10.0, "latent_std_least": 0.9}

    assert readable(metrics, "-lpips").splitlines() == [
        "                   value  better",
        "  psnr             26.31  higher  lq 22",
        "  lpips *         0.2207  lower",
        "  latent_std           1          least 0.9",
        "  brisque           12.5  lower   hq 10",
    ]


@pytest.mark.parametrize(
    ("terminal", "rank", "lines"), [("1", 0, True), ("0", 0, False), ("1", 1, False)]
)
def test_a_bar_is_on_the_first_ranks_terminal_only(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: str,
    rank: int,
    *,
    lines: bool,
) -> None:
    """A log file gets none."""
    monkeypatch.setenv("TTY_COMPATIBLE", terminal)
    monkeypatch.setattr(validation, "rank", lambda: rank)
    with Bar("step 3") as bar:
        bar.show("pairs", 1, 4)
    shown = capsys.readouterr()

    assert ("step 3: validation, pairs" in shown.err) == lines
    assert not shown.out


def test_a_terminal_that_is_gone_stops_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads any more, as after SIGHUP; the run still has to save."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        os.close(reading)
        terminal.say("step 1\n")
        terminal.say("step 2\n")
