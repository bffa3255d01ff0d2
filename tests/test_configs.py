"""Configurations: presets build, JSON gives them back, every field is read and documented."""

import ast
import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from infra import cli
from infra.config import digest, from_dict, to_dict
from infra.errors import UsageError, UserError
from pipelines.curate import config as curate
from pipelines.encode import config as encode
from pipelines.score import config as score
from trainers.loop.config import EngineConfig, LoopConfig, OptimizerConfig
from trainers.recipes import flow_config as flow
from trainers.recipes import predictor_config as predictor
from trainers.recipes import vae_config as vae

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "curate": (curate.CurateConfig, curate.PRESETS),
    "encode": (encode.EncodeConfig, encode.PRESETS),
    "score": (score.ScoreConfig, score.PRESETS),
    "vae": (vae.VAEConfig, vae.PRESETS),
    "predictor": (predictor.PredictorConfig, predictor.PRESETS),
    "flow": (flow.FlowConfig, flow.PRESETS),
    "loop": (LoopConfig, {"default": LoopConfig()}),
    "optimizer": (OptimizerConfig, {"default": OptimizerConfig()}),
    "engine": (EngineConfig, {"default": EngineConfig()}),
}
"""Every program's configuration class and presets."""


@pytest.mark.parametrize("program", PROGRAMS)
def test_presets_survive_json(program: str) -> None:
    """What a run saves is what --config reads."""
    cls, presets = PROGRAMS[program]
    for preset in presets.values():
        assert from_dict(cls, to_dict(preset)) == preset


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_key_is_an_error(program: str) -> None:
    """A misspelt key does not silently do nothing."""
    with pytest.raises(UsageError, match="workder_specific_seed"):
        from_dict(PROGRAMS[program][0], {"workder_specific_seed": True})


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_field_is_read_somewhere(program: str) -> None:
    """No configuration key is furniture: each is an attribute that some module reads."""
    read = {
        node.attr
        for folder in ("pipelines", "trainers", "datasets", "models", "infra")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    fields = {field.name for field in dataclasses.fields(PROGRAMS[program][0])}

    assert fields - read == set()


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_field_is_documented(program: str) -> None:
    """Each field is followed by a line that says what it is: --help shows it."""
    cls = PROGRAMS[program][0]
    tree = ast.parse((ROOT / f"{cls.__module__.replace('.', '/')}.py").read_text())
    (body,) = (
        node.body
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )
    for field, line in pairwise(body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(line, ast.Expr), ast.unparse(field)


def test_the_options_of_curate_are_these() -> None:
    """The command line changes on purpose only."""
    fields = [field.name for field in dataclasses.fields(curate.CurateConfig)]

    assert fields == [
        *("input", "output", "mode", "size", "stride", "scorer", "scorer_weights"),
        *("scorer_prompt", "scorer_dtype", "scorer_batch", "scorer_gpus"),
        *("threshold", "first", "limit"),
        *("samples_per_shard", "val_fraction", "seed", "max_bad", "max_pixels", "workers"),
        *("track", "overwrite", "dry_run"),
    ]


def test_options_override_files_override_presets(tmp_path: Path) -> None:
    """The nearer to the user's fingers, the stronger."""
    saved = tmp_path / "config.json"
    saved.write_text('{"size": 128, "stride": 64}')
    arguments = ["--preset", "demo", "--config", str(saved), "--stride", "32"]
    config = cli.parse(curate.CurateConfig, curate.PRESETS, arguments, "x", "")

    assert (config.size, config.stride, config.scorer) == (128, 32, "brisque")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("no"), 1),
        (UsageError("no"), 2),
        (KeyboardInterrupt(), 130),
        (OSError(28, "x"), 1),
    ],
)
def test_mistakes_end_in_one_line_and_a_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback reaches a user for what is not a defect."""

    def main(_: object) -> int:
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.run(main)

    assert caught.value.code == code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_digest_knows_content_and_not_order() -> None:
    """Two dictionaries of one content are one identity."""
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
