"""Configurations: presets build, JSON gives them back, every field is read and documented."""

import ast
import dataclasses
import json
import operator
import pickle
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from datasets.degradation.parameters import PRESETS as DEGRADATIONS
from infra import cli
from infra.config import digest, from_dict, to_dict
from infra.errors import UsageError, UserError
from models.predictor import swinir
from models.vae import sim_vae
from models.velocity import hdit, looformer
from pipelines.curate import config as curate
from pipelines.encode import config as encode
from pipelines.jobs.scorer_choice import ScorerChoice
from pipelines.restore import config as restore
from pipelines.score import config as score
from trainers.loop.config import ChangesConfig, EngineConfig, LoopConfig, OptimizerConfig
from trainers.recipes import flow_config as flow
from trainers.recipes import predictor_config as predictor
from trainers.recipes import vae_config as vae

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "curate": (curate.CurateConfig, curate.PRESETS),
    "encode": (encode.EncodeConfig, encode.PRESETS),
    "score": (score.ScoreConfig, score.PRESETS),
    "restore": (restore.RestoreConfig, restore.PRESETS),
    "restore-rule": (restore.RestoreRule, {"default": restore.RestoreRule()}),
    "vae": (vae.VAEConfig, vae.PRESETS),
    "predictor": (predictor.PredictorConfig, predictor.PRESETS),
    "flow": (flow.FlowConfig, flow.PRESETS),
    "loop": (LoopConfig, {"default": LoopConfig()}),
    "optimizer": (OptimizerConfig, {"default": OptimizerConfig()}),
    "engine": (EngineConfig, {"default": EngineConfig()}),
    "changes": (ChangesConfig, {"default": ChangesConfig()}),
    "export": (restore.ExportConfig, {"default": restore.ExportConfig()}),
    "verify": (encode.VerifyConfig, {"default": encode.VerifyConfig()}),
    "crop": (curate.CropRule, {"default": curate.CropRule()}),
    "cut": (curate.CutRule, {"default": curate.CutRule()}),
    "rule": (encode.EncodeRule, {"default": encode.EncodeRule()}),
    "scorer": (ScorerChoice, {"default": ScorerChoice()}),
}
"""Every configuration class of a program, or of a part of one, and its presets."""
WHOLE = ("optimizer",)  # its fields are not read one by one: they are AdamW's arguments
TRAINING = """
    activation-checkpointing best betas cache cache-gb check-data clipping-from compile
    cosine-steps decays deepspeed-config dry-run eps floor global-batch-size gradient-clipping
    grid-images init-from keep-best keep-last local-rank log-every lpips max-steps
    micro-batch-size model on-usr1 output peak peak-from precision resume save-every seed
    skip-budget skip-non-finite skip-steps timeout-minutes track validate-every validate-limit
    warmup warmup-from warmup-steps weight-decay work workers zero-stage
"""
OPTIONS = {
    "curate": """
        dry-run duplicates exclude first hold-out input limit max-bad max-pixels mode output
        overwrite samples-per-shard scorer scorer-batch scorer-dtype scorer-gpus scorer-prompt
        scorer-weights seed size stride threshold track val-fraction val-list workers
    """,
    "encode": """
        batch degradation device draws dry-run dtype gpus input keep-images limit output
        overwrite posterior precision predictor predictor-precision regressor reuse
        samples-per-shard seed source track vae workers
    """,
    "verify": """
        device input predictor recompute regressor repair vae
    """,
    "restore": """
        batch colour device execution faces faces-json gpus input keep-posterior-mean layers method
        min-face model output overwrite dry-run precision reference samples seed sigma-s solver
        steps strength threads whole workers
    """,
    "export": """
        about alignment checkpoint dtype licence predictor regressor sigma-s solver steps vae
    """,
    "score": """
        device images max-bad output scorer scorer-batch scorer-dtype scorer-prompt
        scorer-weights
    """,
    "vae": """
        crop data data-weights flip kl l1 perceptual vgg
    """
    + TRAINING,
    "predictor": """
        degradation error images images-weights
    """
    + TRAINING,
    "flow": """
        alignment conditional degradation dists draws images latents posterior predictor regressor
        sampling-steps sigma-s source space stage times vae
    """
    + TRAINING,
}
"""The options of every program, without the dashes. They change on purpose only."""


@pytest.mark.parametrize("program", PROGRAMS)
def test_presets_survive_json(program: str) -> None:
    """What a run saves is what --config reads."""
    cls, presets = PROGRAMS[program]
    for preset in presets.values():
        assert from_dict(cls, to_dict(preset)) == preset


ADAM: dict[str, Any] = {"optimizer.weight_decay": 0.0, "optimizer.betas": (0.9, 0.999)}
A_FLOW: dict[str, Any] = {
    "optimizer.betas": (0.9, 0.95),
    "optimizer.weight_decay": 0.01,
    "optimizer.eps": 1e-8,
    "schedule.peak": 5e-4,
    "schedule.warmup_steps": 0,
    "schedule.cosine_steps": None,
    "ema.decays": (0.9999,),
    "engine.precision": "bf16",
    "sigma_s": 0.1,
    "times": "stratified",
    "sampling_steps": 25,
}
PMRF = {**A_FLOW, "engine.gradient_clipping": 0.0, "ema.warmup": "torch_ema"}
SIM_VAE: dict[str, Any] = {
    "loop.max_steps": 150_000,
    "engine.global_batch_size": 64,
    "engine.precision": "fp32",
    "crop": 256,
    "ema.decays": (0.9999,),
    "ema.warmup": "diffusers",
    "schedule.peak": 1e-4,
    "schedule.warmup_from": 1e-5,
    "schedule.warmup_steps": 500,
    "schedule.floor": 1e-6,
}
PUBLISHED: dict[tuple[str, str], dict[str, Any]] = {
    ("vae", "paper"): {**SIM_VAE, **ADAM, "schedule.cosine_steps": 149_500},
    ("vae", "authors"): {  # their file of options
        **SIM_VAE,
        "optimizer.betas": (0.9, 0.99),
        "optimizer.weight_decay": 0.01,
        "engine.gradient_clipping": 1.0,
        "schedule.cosine_steps": 200_000,
    },
    ("predictor", "difface"): {  # DifFace's configs/training/swinir_ffhq512.yaml
        **ADAM,
        "error": "l1",
        "loop.max_steps": 300_000,
        "engine.global_batch_size": 32,
        "schedule.peak": 5e-5,
        "schedule.floor": 5e-6,
        "schedule.cosine_steps": 300_000,
    },
    ("flow", "latent-pmrf"): {
        **A_FLOW,
        "loop.max_steps": 400_000,
        "engine.global_batch_size": 64,
        # what the paper is silent on is as the authors train their VAE
        "engine.gradient_clipping": 1.0,
        "ema.warmup": "diffusers",
    },
    ("flow", "pmrf"): {  # PMRF's train_pmrf.sh, and torch_ema
        **PMRF,
        "loop.max_steps": 1_051_050,
        "engine.global_batch_size": 256,
    },
    ("flow", "pmrf-star"): {
        **PMRF,
        "loop.max_steps": 400_000,
        "engine.global_batch_size": 64,
    },
}
"""How the papers, or their authors' code, train what a preset is named after."""


@pytest.mark.parametrize(("program", "preset"), PUBLISHED, ids=" ".join)
def test_presets_train_as_published(program: str, preset: str) -> None:
    """What a publication leaves to a default of its own code is part of how it trains."""
    expected = PUBLISHED[program, preset]
    config = PROGRAMS[program][1][preset]

    assert {name: operator.attrgetter(name)(config) for name in expected} == expected


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_key_is_an_error(program: str) -> None:
    """A misspelt key does not silently do nothing."""
    with pytest.raises(UsageError, match="workder_specific_seed"):
        from_dict(PROGRAMS[program][0], {"workder_specific_seed": True})


@pytest.fixture(scope="module")
def read() -> set[str]:
    """Return every attribute that a module reads."""
    return {
        node.attr
        for folder in ("pipelines", "trainers", "datasets", "models", "infra")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name not in WHOLE])
def test_every_field_is_read_somewhere(program: str, read: set[str]) -> None:
    """No configuration key is furniture: each is an attribute that some module reads."""
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


@pytest.mark.parametrize("program", OPTIONS)
def test_the_options_are_these(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line changes on purpose only, however its configuration is nested."""
    monkeypatch.setenv("COLUMNS", "80")  # one option a row
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit):
        cli.parse(*PROGRAMS[program], ["--help"], "x", "")
    listed = re.findall(
        r"^[│ ] (?:-[a-z] .*, )?--([a-z][a-z0-9-]*)", capsys.readouterr().out, re.MULTILINE
    )

    assert sorted(listed) == sorted(OPTIONS[program].split())


@pytest.mark.parametrize(
    ("program", "option", "names"),
    [
        ("encode", "degradation", DEGRADATIONS),
        ("flow", "degradation", ["None", *DEGRADATIONS]),
        ("flow", "model", {**looformer.PRESETS, **hdit.PRESETS}),
        ("predictor", "degradation", DEGRADATIONS),
        ("predictor", "model", swinir.PRESETS),
        ("vae", "model", sim_vae.PRESETS),
    ],
)
def test_help_lists_the_choices(
    program: str,
    option: str,
    names: Iterable[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By name, instead of naming a table in the code; and each is taken."""
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit):
        cli.parse(*PROGRAMS[program], ["--help"], "x", "")
    helped = re.sub(r"[\s│]", "", capsys.readouterr().out)  # lines are broken within a box

    assert f"--{option}{{{','.join(names)}}}" in helped
    assert "PRESETS" not in helped
    assert "datasets.degradation" not in helped
    base = () if program != "vae" else ("--crop", "64")
    for name in names:
        cli.parse(*PROGRAMS[program], [*base, f"--{option}", name], "x", "")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_configuration_goes_to_workers_unchanged(program: str) -> None:
    """Ray pickles it; replacing nothing gives an equal one, which nobody can change."""
    for preset in PROGRAMS[program][1].values():
        assert pickle.loads(pickle.dumps(preset)) == preset
        assert dataclasses.replace(preset) == preset
        name = dataclasses.fields(preset)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(preset, name, None)


CURATE = (curate.CurateConfig, curate.PRESETS)
ENCODE = (encode.EncodeConfig, encode.PRESETS)
FLOW = (flow.FlowConfig, flow.PRESETS)
WRONG: list[tuple[Any, str, str]] = [
    (CURATE, '{"dry_run": "false"}', "dry_run 'false': should be a valid boolean"),
    (CURATE, '{"dry_run": 0}', "dry_run 0: should be a valid boolean"),
    (CURATE, '{"input": "LSDIR"}', "input 'LSDIR': should be a valid array"),
    (CURATE, '{"workers": 2.7}', "workers 2.7: should be a valid integer"),
    (CURATE, '{"workers": -2}', "workers -2: should be greater than 0"),
    (CURATE, '{"output": null}', "output None: should be a valid string"),
    (CURATE, '{"threshold": NaN}', "threshold nan: should be a finite number"),
    (CURATE, '{"max_bad": -Infinity}', "max_bad -inf: should be a finite number"),
    (CURATE, '{"cut": {"val_fraction": 1}}', "cut.val_fraction 1: should be less than 1"),
    (CURATE, '{"crop": {"mode": "zoom"}}', "crop.mode 'zoom': should be 'crop' or 'resize'"),
    (CURATE, '{"crop": {"stride": 600}}', "crop: stride 600: between 1 and the size, 256"),
    (CURATE, '{"crop": 512}', "crop 512: should be an object"),
    (CURATE, '{"treshold": 3}', "unknown keys: treshold; valid: input, output, crop, scorer,"),
    (CURATE, '{"crop": {"sise": 1}}', "unknown keys: crop.sise; valid: mode, size, stride"),
    (ENCODE, '{"draws": 0}', "draws 0: should be greater than 0"),
    (ENCODE, '{"rule": {"device": "tpu"}}', "rule.device 'tpu': should be 'cuda' or 'cpu'"),
    (FLOW, '{"sigma_s": "0.1"}', "sigma_s '0.1': should be a valid number"),
    (FLOW, '{"optimizer": {"betas": [0.9, 1.0]}}', "optimizer.betas.1 1.0: should be less"),
    (FLOW, '{"schedule": {"peak": NaN}}', "schedule.peak nan: should be a finite number"),
    (FLOW, '{"ema": {"warmup": "linear"}}', "ema.warmup 'linear': should be 'diffusers',"),
    (FLOW, '{"loop": {"max_step": 5}}', "unknown keys: loop.max_step; valid: output,"),
]


@pytest.mark.parametrize(("program", "saved", "said"), WRONG)
def test_a_saved_configuration_is_read_strictly(
    program: Any, saved: str, said: str, tmp_path: Path
) -> None:
    """Nothing is converted or passed over; the message names file, field, value and remedy."""
    file = tmp_path / "config.json"
    file.write_text(saved)

    with pytest.raises(UsageError, match=re.escape(f"--config {file}: {said}")):
        cli.parse(*program, ["--config", str(file)], "x", "")


@pytest.mark.parametrize(
    ("program", "arguments", "said"),
    [
        (
            CURATE,
            ["--preset", "lsdir", "--size", "4"],
            "crop.size 4: should be greater than or equal to 8",
        ),
        (CURATE, ["--scorer-batch", "0"], "scorer.batch 0: should be greater than 0"),
        (
            CURATE,
            ["--preset", "lsdir", "--stride", "600"],
            "crop: stride 600: between 1 and the size, 512",
        ),
        (CURATE, ["--threshold", "nan"], "threshold nan: should be a finite number"),
        (CURATE, ["--workers", "-1"], "workers -1: should be greater than 0"),
        (ENCODE, ["--device", "cpu", "--gpus", "1"], "gpus 1 with device cpu"),
        (FLOW, ["--stage", "regressor", "--source", "lq"], "stage='regressor' with source='lq'"),
        (FLOW, ["--max-steps", "0"], "loop.max_steps 0: should be greater than 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_a_sentence(
    program: Any, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line says what a file says, without a frame or a library's address."""
    with pytest.raises(UsageError) as caught:
        cli.parse(*program, arguments, "x", "")

    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""


def test_an_option_that_does_not_exist_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """What tyro refuses by itself, it also says by itself, with code 2."""
    with pytest.raises(SystemExit, match="2"):
        cli.parse(*CURATE, ["--treshold", "3"], "x", "")

    assert "--treshold" in capsys.readouterr().err


def test_integers_are_numbers_and_lists_are_tuples() -> None:
    """What JSON cannot tell apart is read as what the field is."""
    values = {"input": ["a", "b"], "threshold": 60, "workers": None}
    config = from_dict(curate.CurateConfig, values)

    assert config.input == ("a", "b")
    assert isinstance(config.threshold, float)
    assert config.workers is None


def test_files_of_the_flat_layout_are_refused(tmp_path: Path) -> None:
    """Configurations were once saved without parts: each misplaced key is told its place."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"output": "x", "size": 256, "stride": 8, "scorer": "brisque"}))
    with pytest.raises(UsageError) as caught:
        cli.parse(*CURATE, ["--config", str(file)], "x", "")

    assert "scorer 'brisque': should be an object" in str(caught.value)
    assert 'unknown keys: size, stride; they belong inside "crop": {...}' in str(caught.value)


def test_options_override_files_override_presets(tmp_path: Path) -> None:
    """The nearer to the user's fingers, the stronger, field by field at any depth."""
    saved = tmp_path / "config.json"
    saved.write_text('{"crop": {"size": 128, "stride": 64}, "workers": 2}')
    arguments = ["--preset", "demo", "--config", str(saved), "--stride", "32"]
    config = cli.parse(*CURATE, arguments, "x", "")

    assert config.crop == curate.CropRule(mode="crop", size=128, stride=32)
    assert config.scorer.name == "brisque"
    assert config.cut == curate.PRESETS["demo"].cut
    assert config.workers == 2


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
