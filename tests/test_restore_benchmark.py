"""The benchmark of restoration counts what the networks compute, and runs."""

import json
from pathlib import Path

import pytest

from tests.benchmarks import restore


@pytest.mark.slow
def test_a_face_of_the_published_sizes_takes_seven_tflop() -> None:
    """The sum that a GPU's time is compared with: 7.25 TFLOP, most of them in 25 velocities."""
    counted = restore.counted_flops(restore.FULL, 512)
    whole = sum(n * (restore.STEPS if name == "velocity" else 1) for name, n in counted.items())

    assert whole / 1e12 == pytest.approx(7.25, abs=0.05)
    assert counted["velocity"] / 1e12 == pytest.approx(0.1532, abs=1e-4)


def ran(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kept: Path,
    *arguments: str,
) -> dict[str, dict[str, object]]:
    """Run the benchmark on tiny networks, which must keep no result; returns what it printed."""
    monkeypatch.setattr("tests.benchmarks.harness.RESULTS", kept)
    assert restore.main(["--tiny", *arguments]) == 0
    assert not [*kept.iterdir()]
    found: dict[str, dict[str, object]] = {}
    for line in capsys.readouterr().out.splitlines():
        found |= json.loads(line)
    return found


def test_the_plain_loop_restores_the_same_picture(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Up to the rounding of other kernels, a level; so that both sides do the same work."""
    found = ran(capsys, monkeypatch, tmp_path, "plain")["plain"]

    assert found["largest_difference_levels"] in (0, 1)


@pytest.mark.slow
def test_every_part_is_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the file to the file, of both models; networks with the operations they were counted."""
    for model in ran(capsys, monkeypatch, tmp_path, "parts")["parts"].values():
        assert isinstance(model, dict)
        parts = model["parts"]
        assert next(iter(parts)) == "read and decode"
        assert [*parts][-1] == "PNG"
        assert all(part["cpu_s"] > 0 for part in parts.values())
        networks = [name for name, part in parts.items() if "gflop" in part]
        assert networks == ["predictor", "encode", "velocity", "decode"]
