"""What a person reads: short digests, and commands that a shell takes as they stand."""

import shlex
from pathlib import Path

import pytest

from infra.config import differences
from infra.tracking.run import start_run

DIGEST = "0123456789abcdef" * 4


def test_a_sentence_has_twelve_digits_of_a_digest() -> None:
    """Also of those inside other values; what is not a SHA-256 stays whole."""
    mine = {"vae": DIGEST, "lists": [DIGEST, 1], "split": f"{DIGEST}/train", "longer": DIGEST + "0"}
    said = differences(mine, dict.fromkeys(mine))

    assert said == [
        "lists: None -> ['0123456789ab', 1]",
        f"longer: None -> '{DIGEST}0'",
        "split: None -> '0123456789ab/train'",
        "vae: None -> '0123456789ab'",
    ]


def test_the_command_that_shows_a_run_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in the path of the store."""
    store = f"sqlite:///{tmp_path}/Lena's runs & more/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with start_run("latent-pmrf/test", folder=tmp_path / "run", name="x", params={}) as run:
        where = run.where()
    command = where[where.index("(mlflow server") + 1 : -1]

    assert shlex.split(command) == ["mlflow", "server", "--backend-store-uri", store]
