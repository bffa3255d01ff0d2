"""Ranks that do not agree on what they train on end before the first step."""

from pathlib import Path

from tests.support.training_sets import SMOKE, start_ranks, write_latent_set


def test_ranks_with_different_data_or_options_all_stop(tmp_path: Path) -> None:
    """As on two machines, one of which has an older copy of the set; each says what differs."""
    older = write_latent_set(tmp_path / "older", identity={"note": "older"})
    newer = write_latent_set(tmp_path / "newer")
    commands = [
        ["trainers.flow", *SMOKE, "--workers", "0", "--latents", newer],
        ["trainers.flow", *SMOKE, "--workers", "0", "--latents", older, "--sigma-s", "0.2"],
    ]
    for process in start_ranks(commands, tmp_path / "run"):
        _, errors = process.communicate()
        assert process.returncode == 1, errors[-2000:]
        assert "rank 1 differs from rank 0 (data: " in errors
        assert "sigma_s: 0.1 -> 0.2" in errors
    assert not list((tmp_path / "run").rglob("step-*"))
