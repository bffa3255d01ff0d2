"""The command as a user starts it: through Ray, with its exit codes and what it says."""

import json
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, ROOT, program
from tests.support.evaluate_jobs import evaluate, numbers, write_pictures


@pytest.mark.slow
def test_through_ray_the_numbers_are_those_of_one_process(tmp_path: Path) -> None:
    """Relative paths; exit code 3 for a missing metric, 0 when all is there, 2 for a wrong call."""
    for name, noise in (("hq", 0), ("a", 5)):
        write_pictures(tmp_path / name, 9, noise=noise)
    alone = evaluate(
        tmp_path / "alone", {"a": tmp_path / "a"}, reference=tmp_path / "hq", metrics=("psnr",)
    )
    given = ["-o", "out", "--restored", "a=a", "--reference", "hq", "--device", "cpu"]

    def run(*options: str) -> tuple[int, str, str]:
        arguments = [*given, "--workers", "2", "--metrics", "psnr", *options]
        process = program(
            "pipelines.evaluate", arguments, tmp_path, cwd=tmp_path, PYTHONPATH=str(ROOT)
        )
        out, errors = process.communicate(timeout=PATIENCE)
        return process.returncode, out, errors

    code, out, errors = run("indrmse")
    assert code == 3, out + errors
    assert out.startswith("metrics on CPUs\n")
    assert errors.startswith("missing\tindrmse\t")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["methods"]["a"]["values"]["psnr"]["value"] == numbers(alone)["a"]["psnr"]

    code, out, errors = run()
    assert (code, "all is measured already" in out) == (0, True), out + errors
    assert "MLflow: run " in out
    (tmp_path / "a" / "face-1.png").unlink()
    code, out, errors = run()
    assert (code, out) == (2, ""), errors
    assert "--restored a lacks 1: face-1" in errors
