"""Ranks that do not agree on what they train on end before the first step."""

from collections.abc import Sequence
from pathlib import Path

from tests.support.training_sets import SMOKE, start_ranks, write_latent_set, write_regressor

TINY = ["trainers.flow", *SMOKE, "--workers", "0"]


def said_by_unequal(commands: Sequence[Sequence[str | Path]], output: Path) -> list[str]:
    """Run a rank for each command, to an end that must be a refusal; returns what each says."""
    said = []
    for process in start_ranks(commands, output):
        _, errors = process.communicate()
        assert process.returncode == 1, errors[-2000:]
        said.append(errors)
    assert not list(output.rglob("step-*"))
    return said


def test_ranks_with_different_data_networks_or_options_all_stop(tmp_path: Path) -> None:
    """As on two machines, one of which has older copies; each says what differs."""
    older = write_latent_set(tmp_path / "older", identity={"note": "older"})
    newer = write_latent_set(tmp_path / "newer")
    regressors = [write_regressor(tmp_path / f"regressor-{seed}", seed) for seed in (1, 2)]
    regressed = [[*TINY, "--source", "regressed", "--regressor", one] for one in regressors]
    commands = [
        [*regressed[0], "--latents", newer],
        [*regressed[1], "--latents", older, "--sigma-s", "0.2"],
    ]
    for said in said_by_unequal(commands, tmp_path / "run"):
        assert "rank 1 differs from rank 0 (data: " in said
        assert "networks.regressor: '" in said
        assert "sigma_s: 0.1 -> 0.2" in said


def test_ranks_that_begin_with_different_weights_all_stop(tmp_path: Path) -> None:
    """The averages of each rank would begin with its own."""
    latents = write_latent_set(tmp_path / "latents")
    commands = [
        [*TINY, "--latents", latents, "--init-from", write_regressor(tmp_path / str(seed), seed)]
        for seed in (1, 2)
    ]
    for said in said_by_unequal(commands, tmp_path / "run"):
        assert "rank 1 differs from rank 0 (--init-from: '" in said
