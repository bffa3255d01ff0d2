"""A flow's run is a model: its bundle at the end, its checkpoints before; validated as restored."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from datasets.decoding import MAX_PIXELS, decode, encode_png
from datasets.degradation.parameters import DegradationConfig
from datasets.reading.latents import LatentPairs
from infra import paths
from infra.config import from_dict
from infra.errors import UsageError, UserError
from infra.folders.opening import open_folder
from infra.paths import path_of
from models.bundle import load_bundle
from models.bundle_facts import BUNDLE
from models.checkpoint import WEIGHTS, load_checkpoint, save_checkpoint, weights_digest
from models.pmrf import REPOSITORY
from models.predictor.swinir import PRESETS as PREDICTORS
from models.predictor.swinir import SwinIR
from pipelines.restore.__main__ import main
from pipelines.restore.bundles import open_bundle, resolved
from pipelines.restore.config import RestoreRule
from pipelines.restore.networks import FaceRestorer
from tests.conftest import picture
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.training_sets import SMOKE, Files, log, write_files
from trainers.loop.run_files import RunFiles
from trainers.loop.task import Finished, unwatched
from trainers.recipes.flow import FlowTask
from trainers.recipes.flow_config import PRESETS

if TYPE_CHECKING:
    from tests.support.trainers_here import Train

pytest_plugins = ["tests.support.trainers_here"]
TINY = ["trainers.flow", *SMOKE, "--workers", "0", "--sampling-steps", "3"]
FOUR = ["--max-steps", "4", "--log-every", "1", "--validate-every", "2", "--save-every", "2"]


@dataclass(frozen=True)
class Trained:
    """A run of four steps, validated on pictures at 0, 2 and 4, with checkpoints at 2 and 4."""

    folder: Path
    files: Files
    command: list[str]
    said: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Images of 32 pixels, latents of 4 x 4, tiny networks."""
    return write_files(tmp_path_factory.mktemp("files"), size=32)


@pytest.fixture(scope="module")
def trained(files: Files, train: "Train", tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train with pictures; tests copy the run before they change it."""
    given = [f"--{name}={getattr(files, name)}" for name in ("images", "vae", "predictor")]
    command = [*TINY, *FOUR, f"--latents={files.latents}", *given]
    folder = tmp_path_factory.mktemp("runs") / "run"
    ended = train(command, folder)
    assert ended.code == 0, ended.said
    return Trained(folder, files, command, ended.said)


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the run, whose training goes on: without its bundle."""
    copy = shutil.copytree(trained.folder, tmp_path / "run")
    shutil.rmtree(copy / "bundle")
    return copy


def test_a_run_ends_with_a_bundle(trained: Trained, files: Files) -> None:
    """The averaged weights, the networks around them, and facts that are the log's own."""
    bundle = load_bundle(trained.folder / "bundle")
    facts, config = bundle.config.training, bundle.config
    last = next(line for line in reversed(log(trained.folder)) if "val/loss" in line)
    network = load_checkpoint(trained.folder / "network")[1]

    assert weights_digest(bundle.velocity.state_dict()) == weights_digest(network)
    assert (config.size, config.alignment, config.steps) == (32, "any", 3)
    assert config.rule.posterior == "sample"
    assert (facts.step, facts.max_steps, facts.batch, facts.held_out) == (4, 4, 4, 3)
    assert last["step"] == 4
    assert facts.validation == {
        name.removeprefix("val/"): value
        for name, value in last.items()
        if name.startswith("val/") and not name.startswith("val/loss")
    }
    latents = LatentPairs(path_of(files.latents), split="train")
    assert facts.data == {"latents": latents.digest.partition("/")[0]}
    assert facts.versions["torch"] == torch.__version__
    assert f"--model {trained.folder}/bundle` restores with it" in trained.said
    assert str(trained.folder.parent) not in (trained.folder / "bundle" / BUNDLE).read_text()


def test_a_bundle_says_what_made_its_lq(trained: Trained, files: Files) -> None:
    """Whoever evaluates it can degrade pictures as those that it was trained on."""
    facts = load_bundle(trained.folder / "bundle").config.training
    made = LatentPairs(path_of(files.latents), split="train").manifest["identity"]["degradation"]

    assert from_dict(DegradationConfig, facts.degradation) == from_dict(DegradationConfig, made)


def test_a_run_and_its_bundle_are_one_model(trained: Trained, run: Path) -> None:
    """By the run's folder, its bundle, a checkpoint; with the step said while it trains."""
    expected = load_bundle(trained.folder / "bundle").config
    checkpoint = run / "checkpoints" / "step-00000004"

    assert open_bundle(str(trained.folder)).config == expected
    assert open_bundle(str(run)).config == expected
    assert open_bundle(str(checkpoint)).config == expected
    assert resolved(str(trained.folder)) == f"{trained.folder}/bundle"
    assert resolved(str(run)) == str(checkpoint)


def test_a_run_that_goes_on_restores_as_it_is(
    trained: Trained, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beyond its last bundle the newest checkpoint counts, and which step that is is said."""
    shutil.copytree(trained.folder / "bundle", run / "bundle")
    shutil.rmtree(run / "checkpoints" / "step-00000004")

    bundle = open_bundle(str(run))

    assert bundle.config.training.step == 2
    assert "the run is at step 2 of 4" in capsys.readouterr().out
    shutil.rmtree(run / "checkpoints")
    assert open_bundle(str(run)).config.training.step == 4  # the bundle alone is left


def test_export_takes_the_checkpoint_that_is_named(
    trained: Trained, run: Path, tmp_path: Path
) -> None:
    """The last, the best by the run's metric, or a step; others are listed."""
    metrics = {
        step: json.loads((run / f"checkpoints/step-0000000{step}/metrics.json").read_text())
        for step in (2, 4)
    }
    best = max(metrics, key=lambda step: metrics[step]["metrics"]["psnr"])
    for which, step in (("last", 4), ("2", 2), ("best", best)):
        assert main(["export", str(run), str(tmp_path / which), "--checkpoint", which]) == 0
        config = load_bundle(tmp_path / which).config
        assert config.training.step == step
        assert config.training.validation["psnr"] == metrics[step]["metrics"]["psnr"]
    assert load_bundle(tmp_path / "last").config == load_bundle(trained.folder / "bundle").config
    with pytest.raises(UsageError, match=r"--checkpoint 3: .* has the steps 2, 4; give one of"):
        main(["export", str(run), str(tmp_path / "3"), "--checkpoint", "3"])
    for rated in run.glob("checkpoints/*/metrics.json"):
        rated.unlink()
    with pytest.raises(UsageError, match=r"no checkpoint of .* was validated by psnr.*last, or a"):
        main(["export", str(run), str(tmp_path / "4"), "--checkpoint", "best"])


def test_export_changes_how_a_bundle_is_stored(trained: Trained, tmp_path: Path) -> None:
    """A bundle in float16, of another alignment; what is of runs only is refused."""
    bundle, half = str(trained.folder / "bundle"), tmp_path / "half"
    assert main(["export", bundle, str(half), "--dtype", "float16", "--alignment", "ffhq"]) == 0
    config = load_bundle(half).config

    assert (config.dtype, config.alignment) == ("float16", "ffhq")
    assert config.training == load_bundle(bundle).config.training
    with pytest.raises(UsageError, match=r"--checkpoint: of a training run, and .* is none"):
        main(["export", bundle, str(half), "--checkpoint", "best"])
    with pytest.raises(UsageError, match=r"usage: python -m pipelines.restore export RUN BUNDLE"):
        main(["export", bundle])
    with pytest.raises(UsageError, match=r"a training run, which stays.*such as .*/run/bundle"):
        main(["export", bundle, str(trained.folder)])


def test_export_sets_how_a_bundle_restores(trained: Trained, tmp_path: Path) -> None:
    """As restoring by these options does, bit for bit; the networks are the same."""
    bundle, told = str(trained.folder / "bundle"), tmp_path / "told"
    before = load_bundle(bundle).config
    said = ["--steps", "3", "--solver", "heun", "--sigma-s", "0"]
    assert main(["export", bundle, str(told), *said]) == 0
    config, card = load_bundle(told).config, (told / "README.md").read_text()
    rule = RestoreRule(model=bundle, steps=3, solver="heun", sigma_s=0.0)

    assert (config.steps, config.solver, config.rule.sigma_s) == (3, "heun", 0.0)
    assert config.parts == before.parts
    assert "it takes 3 steps of the solver heun, without noise." in card
    faces = [np.asarray(picture(0, config.size, config.size))]
    (asked,) = FaceRestorer(rule)(faces, ["a"])
    (made,) = FaceRestorer(RestoreRule(model=str(told)))(faces, ["a"])
    assert np.array_equal(asked.restored, made.restored)


def test_export_adds_what_its_user_says_to_the_card(trained: Trained, tmp_path: Path) -> None:
    """A text, and the licence of what was trained here; the model is the same."""
    bundle, told, text = str(trained.folder / "bundle"), tmp_path / "told", tmp_path / "about.md"
    text.write_text("## Data\n\nTwo drawn squares.\n")
    said = ["--about", str(text), "--licence", "Apache-2.0"]
    assert main(["export", bundle, str(told), *said]) == 0
    config, card = load_bundle(told).config, (told / "README.md").read_text()

    assert "## Data\n\nTwo drawn squares.\n\n## Use" in card
    assert card.count("| Apache-2.0 |") == len(config.parts)
    assert config.digest == load_bundle(bundle).config.digest
    with pytest.raises(UsageError, match=r"--about .*nothing.md: not a file of UTF-8 text"):
        main(["export", bundle, str(told), "--about", str(tmp_path / "nothing.md")])


def test_a_run_without_its_networks_says_how_to_export(
    files: Files, train: "Train", tmp_path: Path
) -> None:
    """A cached-latents run that knows no autoencoder ends with the command; that works."""
    command = [*TINY, "--max-steps", "1", "--validate-every", "0", f"--latents={files.latents}"]
    ended = train(command, tmp_path / "run")
    line = next(line for line in ended.said.splitlines() if line.startswith("no bundle yet"))
    _, advised, _ = line.split("`")
    arguments = advised.removeprefix("python -m pipelines.restore ")
    arguments = arguments.replace("VAE", files.vae).replace("PREDICTOR", files.predictor)

    assert ended.code == 0
    with pytest.raises(UsageError, match=r"trained without a vae at hand; name it by .*--vae VAE"):
        open_bundle(str(tmp_path / "run"))
    assert main(arguments.split()) == 0
    assert open_bundle(str(tmp_path / "run")).config.size == 32
    assert resolved(str(tmp_path / "run")).endswith("/bundle")


def test_networks_that_have_moved_or_changed_are_named(
    run: Path, files: Files, tmp_path: Path
) -> None:
    """Which network, where it was, the remedy; and another predictor is not taken for it."""
    record = run / "checkpoints/step-00000004/record.json"
    values = json.loads(record.read_text())
    values["restoring"]["networks"]["vae"] = "/gone/vae"
    _rewrite(record, values)
    with pytest.raises(UsageError, match=r"its vae is not to be had from /gone/vae.*--vae VAE"):
        open_bundle(str(run))
    assert main(["export", str(run), str(tmp_path / "found"), "--vae", files.vae]) == 0

    other = SwinIR(PREDICTORS["tiny"])
    save_checkpoint(tmp_path / "other", other.state_dict(), asdict(other.config))
    options = ["--vae", files.vae, "--predictor", str(tmp_path / "other")]
    with pytest.raises(UsageError, match=r"trained with the predictor [0-9a-f]{12}, and "):
        main(["export", str(run), str(tmp_path / "wrong"), *options])
    assert not (tmp_path / "wrong").exists()


def _rewrite(record: Path, values: dict[str, Any]) -> None:
    """Write a checkpoint's record, and note it in the manifest."""
    record.write_text(json.dumps(values))
    manifest = record.with_name("manifest.json")
    noted = json.loads(manifest.read_text())
    noted["files"]["record.json"]["sha256"] = paths.sha256(record)
    manifest.write_text(json.dumps(noted))


@pytest.mark.parametrize(
    ("restoring", "message"),
    [
        (None, "of no flow, and only a flow restores"),
        ("absent", "give the run's training command again"),
        ({"rule": {}}, "damaged .*choose another by --checkpoint STEP"),
    ],
)
def test_checkpoints_that_cannot_restore_are_refused(
    restoring: Any, message: str, run: Path
) -> None:
    """A regressor's, an older program's, a damaged one."""
    record = run / "checkpoints/step-00000004/record.json"
    values = json.loads(record.read_text())
    values["restoring"] = restoring
    if restoring == "absent":
        del values["restoring"]
    _rewrite(record, values)
    with pytest.raises(UsageError, match=message):
        open_bundle(str(run))


def test_a_changed_record_or_weight_is_noticed(run: Path) -> None:
    """A checkpoint is believed as its digests say; the older one is the way out."""
    checkpoint = run / "checkpoints" / "step-00000004"
    weights = checkpoint / "ema-0.99" / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UsageError, match=r"digest.*choose another by --checkpoint STEP"):
        open_bundle(str(run))
    weights.write_bytes(whole)
    record = checkpoint / "record.json"
    record.write_text(record.read_text().replace('"step": 4', '"step": 5'))
    with pytest.raises(UsageError, match=r"record.json has other bytes"):
        open_bundle(str(run))
    assert main(["export", str(run), str(run.parent / "older"), "--checkpoint", "2"]) == 0


def test_old_checkpoints_get_a_bundle_by_the_training_command(
    trained: Trained, run: Path, train: "Train"
) -> None:
    """The remedy of the refusal: a run that has ended only writes what is missing."""
    ended = train(trained.command, run)

    assert "complete already: 4 of 4 steps" in ended.said
    expected = load_bundle(trained.folder / "bundle").config
    assert load_bundle(run / "bundle").config.digest == expected.digest
    assert load_bundle(run / "bundle").config.training == expected.training


def test_a_taken_folder_ends_a_run_in_a_sentence(
    trained: Trained, run: Path, train: "Train"
) -> None:
    """The training is not lost: the network is there, and the same command ends it later."""
    (run / "bundle" / "vae").mkdir(parents=True)
    shutil.rmtree(run / "network")
    ended = train(trained.command, run)

    assert ended.code == 1
    assert "the bundle could not be written" in ended.said
    assert "holds vae, " in ended.said
    assert (run / "network" / WEIGHTS).exists()
    (run / "bundle" / "vae").rmdir()
    assert train(trained.command, run).code == 0
    assert (run / "bundle" / BUNDLE).exists()


@pytest.mark.parametrize(
    "source",
    ["posterior_mean", *(pytest.param(s, marks=pytest.mark.slow) for s in ("regressed", "lq"))],
)
def test_validation_shows_what_the_command_restores(
    source: str, files: Files, tmp_path: Path
) -> None:
    """The LQ images of a validation, saved and restored by their keys, are its pictures."""
    given = {**asdict(files), "images": (files.images,), "source": source}
    given |= {} if source == "regressed" else {"regressor": ""}
    given |= {"latents": "", "draws": "online"} if source == "lq" else {}
    config = replace(PRESETS["tiny"], model="tiny", sampling_steps=3, **given)
    loop = replace(config.loop, workers=0, output=str(tmp_path / "run"))
    task = FlowTask(replace(config, loop=loop), torch.device("cpu"))
    for parameter in task.network.parameters():  # one that moves; a fresh one stands still
        generator = torch.Generator().manual_seed(parameter.numel())
        parameter.data.normal_(std=0.1, generator=generator)
    assert task.restorations is not None

    gallery = task.restorations.judge(task.network.eval(), unwatched)[1]
    model = task.export(task.network, Finished(1, {}, {}))
    assert f"python -m pipelines.restore --model {tmp_path}/run/bundle" in model.use
    restorer = FaceRestorer(RestoreRule(model=str(tmp_path / "run" / "bundle"), seed=0))
    shown = {
        title: torch.cat(some).permute(0, 2, 3, 1).numpy()
        for title, some in gallery._columns.items()
        if some
    }
    assert len(gallery._keys) == 3
    for row, key in enumerate(gallery._keys):
        (tmp_path / f"{key}.png").write_bytes(encode_png(shown["lq"][row]))
        lq = decode((tmp_path / f"{key}.png").read_bytes(), MAX_PIXELS)
        (face,) = restorer([lq], [key])
        assert np.array_equal(face.restored, shown["restored"][row])
        assert not np.array_equal(face.restored, lq)
        if source != "lq":
            assert face.posterior_mean is not None
            assert np.array_equal(face.posterior_mean, shown["posterior_mean"][row])


@pytest.fixture
def bucket(
    s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyProxy]:
    """A bucket, for a machine with an empty cache."""
    s3_proxy.harmless()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield s3_proxy
    s3_proxy.harmless()


def test_a_run_in_a_bucket_is_a_model_too(
    trained: Trained, train: "Train", bucket: FaultyProxy, tmp_path: Path
) -> None:
    """Its bundle, its checkpoints, an exported bundle: each opens by its URI."""
    uri = f"s3://tests/bundles/{tmp_path.name}"
    expected = load_bundle(trained.folder / "bundle").config
    assert train(trained.command, f"{uri}/run").code == 0

    assert open_bundle(f"{uri}/run").config.digest == expected.digest
    assert resolved(f"{uri}/run") == f"{uri}/run/bundle"
    (path_of(f"{uri}/run") / "bundle" / BUNDLE).unlink()
    assert open_bundle(f"{uri}/run").config.digest == expected.digest
    for checkpoint in ("2", "last"):  # the second replaces the first
        assert main(["export", f"{uri}/run", f"{uri}/out", "--checkpoint", checkpoint]) == 0
    assert open_bundle(f"{uri}/out").config.digest == expected.digest
    with pytest.raises(UserError, match=r"--model .*/nothing: .*give a bundle, the folder"):
        open_bundle(f"{uri}/nothing")


def test_what_names_files_is_stored_after_them(trained: Trained, tmp_path: Path) -> None:
    """A run that is killed while it stores its bundle has no bundle.json of other networks."""
    files = RunFiles(trained.folder, open_folder(str(tmp_path)))
    names = [path.relative_to(trained.folder).as_posix() for path in files._paths()]

    assert [name for name in names if name.startswith("bundle/")][-2:] == [
        "bundle/README.md",
        f"bundle/{BUNDLE}",
    ]
    for folder in ("network", "bundle/velocity", "bundle/predictor"):
        assert names.index(f"{folder}/{WEIGHTS}") < names.index(f"{folder}/config.json")
    assert names[-2:] == ["config.json", "log.jsonl"]


def test_an_upload_that_breaks_off_leaves_no_bundle(
    trained: Trained, bucket: FaultyProxy, tmp_path: Path
) -> None:
    """Without bundle.json it is refused; the same command makes it whole; foreign files stay."""
    uri, local = f"s3://tests/bundles/{tmp_path.name}", str(trained.folder / "bundle")
    assert main(["export", local, uri]) == 0
    bucket.faults.append(
        Fault(method="PUT", path="predictor/", status=403, code="AccessDenied", times=99)
    )
    with pytest.raises(UserError, match="s3:Put"):
        main(["export", local, uri, "--dtype", "float16"])
    bucket.harmless()
    with pytest.raises(UsageError, match="give a bundle"):
        open_bundle(uri)
    assert main(["export", local, uri, "--dtype", "float16"]) == 0
    assert open_bundle(uri).config.dtype == "float16"

    paths.write_bytes(path_of(f"{uri}/mine") / "vae" / WEIGHTS, b"precious")
    with pytest.raises(UsageError, match=r"holds vae, .*give a folder of its own"):
        main(["export", local, f"{uri}/mine"])


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("runs/mistyped", r"neither a folder here nor had from the Hugging Face hub .*give a"),
        (REPOSITORY, r"had from the Hugging Face hub .*get config.json and model.safetensors of "),
        ("/no/such/folder", r"no such file.*give a bundle, the folder of a training run"),
    ],
)
def test_what_is_no_model_is_refused(
    where: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each says what may be given."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=message):
        open_bundle(where)
