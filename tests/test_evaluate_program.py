"""The command as a user starts it: through Ray, with its exit codes and what it says."""

import json
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, program
from tests.support.evaluate_jobs import evaluate, numbers, write_pictures


@pytest.mark.slow
def test_through_ray_the_numbers_are_those_of_one_process(tmp_path: Path) -> None:
    """Relative paths; exit codes 0, 1 for a broken picture, 2 for a wrong call, 3."""
    for name, noise in (("hq", 0), ("a", 5)):
        write_pictures(tmp_path / name, 9, noise=noise)
    alone = evaluate(
        tmp_path / "alone", {"a": tmp_path / "a"}, reference=tmp_path / "hq", metrics=("psnr",)
    )
    given = ["-o", "out", "--restored", "a=a", "--reference", "hq", "--workers", "2"]

    def run(*options: str) -> tuple[int, str, str]:
        root = Path(__file__).resolve().parents[1]
        process = program(
            "pipelines.evaluate", [*given, *options], tmp_path, cwd=tmp_path, PYTHONPATH=str(root)
        )
        out, errors = process.communicate(timeout=PATIENCE)
        return process.returncode, out, errors

    code, out, errors = run("--metrics", "psnr", "--device", "cpu")
    assert code == 0, out + errors
    assert out.startswith("metrics on CPUs\n")
    assert "psnr ↑" in out
    assert "MLflow: run " in out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["methods"]["a"]["values"]["psnr"]["value"] == numbers(alone)["a"]["psnr"]

    code, out, errors = run("--metrics", "psnr", "indrmse", "--device", "cpu")
    assert (code, "all is measured already" in out) == (3, True), out + errors
    (tmp_path / "a" / "face-1.png").write_bytes(b"")
    code, out, errors = run("--metrics", "psnr", "--device", "cpu")
    assert code == 1, out + errors
    assert "empty_file\t--restored a face-1\t" in errors
    (tmp_path / "a" / "face-1.png").unlink()
    code, out, errors = run("--metrics", "psnr", "--device", "cpu")
    assert code == 2, out + errors
    assert "--restored a lacks 1: face-1" in errors
