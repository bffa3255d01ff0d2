"""What a person reads: short digests, and commands that a shell takes as they stand."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from datasets.degradation.parameters import PRESETS as DEGRADATIONS
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


@pytest.mark.parametrize("module", ["pipelines.encode", "trainers.predictor", "trainers.flow"])
def test_the_help_names_the_degradations(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And not the table in the code that has them."""
    program = module if module.startswith("trainers") else f"{module}.__main__"
    with pytest.raises(SystemExit):
        importlib.import_module(program).main(["--help"])
    words = re.findall(r"[\w-]+", capsys.readouterr().out)

    assert set(DEGRADATIONS) <= set(words)
