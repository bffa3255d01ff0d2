"""Ranks that do not agree on what they train on end before the first step."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import PATIENCE, ROOT, environment, free_port
from tests.support.training_sets import SMOKE, write_latent_set

RUN = [*SMOKE, "--workers", "0", "--no-track"]


def test_ranks_with_different_data_or_options_all_stop(tmp_path: Path) -> None:
    """As on two machines, one of which has an older copy of the set; each says what differs."""
    older = write_latent_set(tmp_path / "older", identity={"note": "older"})
    newer = write_latent_set(tmp_path / "newer")
    options = ([], ["--sigma-s", "0.2"])
    master = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "trainers.flow", *RUN, *options[rank]),
                *("--latents", str(latents), "--output", str(tmp_path / "run")),
            ],
            cwd=ROOT,
            env={**environment(tmp_path), **master, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, latents in enumerate((newer, older))
    ]
    for process in processes:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1, errors[-2000:]
        assert "rank 1 differs from rank 0 (data: " in errors
        assert "sigma_s: 0.1 -> 0.2" in errors
    assert not list((tmp_path / "run").rglob("step-*"))
