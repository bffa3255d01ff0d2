"""A folder of the wrong kind, wherever a set is taken: what it is, and what is wanted there."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from pipelines.curate import __main__ as curate
from pipelines.encode import __main__ as encode
from pipelines.encode.reuse import earlier_manifest
from tests.conftest import picture
from tests.support.training_sets import Files, write_files
from trainers.loop.config import LoopConfig
from trainers.recipes import flow_config, predictor_config, vae_config
from trainers.recipes.flow import FlowTask
from trainers.recipes.predictor import PredictorTask
from trainers.recipes.vae import VAETask

CPU = torch.device("cpu")
WANTED = {
    "an image set": "an image set is wanted here, python -m pipelines.curate makes one",
    "a latent set": "a latent set is wanted here, python -m pipelines.encode makes one",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write what people take for a set, each under the name of its kind, and real files to use."""
    folder = tmp_path_factory.mktemp("world")
    files = write_files(folder, size=32)
    (folder / "empty").mkdir()
    (folder / "file").write_bytes(b"1")
    for name in ("photographs", "run", "curating", "encoding", "tars", "others"):
        (folder / name).mkdir()
    for number in range(5):
        picture(number, 32, 32).save(folder / "photographs" / f"{number}.png")
    (folder / "curating" / ".curate").mkdir()
    (folder / "encoding" / ".encode").mkdir()
    (folder / "run" / "config.json").write_text("{}")
    (folder / "run" / "checkpoints").mkdir()
    shutil.copy(Path(files.images) / "train-000000.tar", folder / "tars")
    (folder / "others" / "notes.txt").write_text("x")
    (folder / "strange").mkdir()
    (folder / "strange" / "manifest.json").write_text('{"shards": [], "files": {}}')
    shutil.copytree(files.images, folder / "parent" / "faces")
    return folder


FOUND = {
    "images": "this is an image set",
    "latents": "this is a latent set",
    "missing": "there is no such folder",
    "file": "this is a file, not a folder",
    "empty": "this is an empty folder",
    "photographs": "this is a folder of image files (0.png, 1.png, 2.png and 2 more)",
    "run": "this is the folder of a training run",
    "swinir": "this is the folder of a network's weights",
    "curating": "python -m pipelines.curate has begun a set here and not finished it: run that com",
    "encoding": "python -m pipelines.encode has begun a set here and not finished it: run that com",
    "tars": "this folder holds tar files and no manifest.json: no set, or an incomplete copy",
    "parent": "this folder holds the sets faces: give one of them",
    "others": "this folder holds notes.txt",
    "strange": "this folder has a manifest.json of another program",
}
"""By the name of a folder of `world`: what it is said to be."""
Take = Callable[[Files, str], object]


def flow(files: Files, **changes: object) -> object:
    """Build the task of a tiny flow."""
    fields = {"latents": files.latents, "vae": files.vae, "predictor": files.predictor}
    loop = LoopConfig(workers=0)
    preset = replace(flow_config.PRESETS["tiny"], model="tiny", degradation=None, loop=loop)
    return FlowTask(replace(preset, **{**fields, **changes}), CPU)


def vae(files: Files, path: str) -> object:
    """Build the task of a tiny autoencoder."""
    return VAETask(replace(vae_config.PRESETS["tiny"], model="tiny", data=(path,)), CPU)


def predictor(files: Files, path: str) -> object:
    """Build the task of a tiny predictor."""
    preset = predictor_config.PRESETS["tiny"]
    return PredictorTask(replace(preset, model="tiny", images=(path,)), CPU)


def encoded(files: Files, *options: str) -> object:
    """Run encode as far as its check of what is given."""
    networks = ("--vae", files.vae, "--predictor", files.predictor)
    output = str(Path(files.vae).parent / "output")
    return encode.main(("--preset", "tiny", *networks, "--output", output, "--no-track", *options))


TAKERS: dict[str, tuple[str, Take]] = {
    "vae --data": ("an image set", vae),
    "predictor --images": ("an image set", predictor),
    "flow --images": ("an image set", lambda files, path: flow(files, images=(path,))),
    "flow --latents": ("a latent set", lambda files, path: flow(files, latents=path)),
    "encode --input": ("an image set", lambda files, path: encoded(files, "--input", path)),
    "encode --dry-run": (
        "an image set",
        lambda files, path: encoded(files, "--dry-run", "--input", path),
    ),
    "encode --reuse": (
        "a latent set",
        lambda _, path: earlier_manifest(Path(path), Path("output")),
    ),
    "encode verify": ("a latent set", lambda _, path: encode.main(("verify", path))),
    "curate verify": ("an image set", lambda _, path: curate.main(("verify", path))),
    "curate export-scores": (
        "an image set",
        lambda _, path: curate.main(("export-scores", path, f"{path}.json")),
    ),
}
"""By what the user runs: the kind of set that it takes there, and the real call."""


@pytest.mark.parametrize(
    ("name", "taker"),
    [(n, t) for n in FOUND for t in TAKERS if FOUND[n] != f"this is {TAKERS[t][0]}"],
)
def test_a_wrong_folder_is_said_to_be_what_it_is(world: Path, name: str, taker: str) -> None:
    """In one sentence, with what is wanted there and the command that makes it."""
    kind, take = TAKERS[taker]
    names = ("latents", "images", "vae", "swinir", "regressor")
    files = Files(*(str(world / part) for part in names))
    with pytest.raises(UserError) as refused:
        take(files, str(world / name))

    said = str(refused.value)
    assert re.search(rf"{re.escape(str(world / name))}: {re.escape(FOUND[name])}", said)
    assert WANTED[kind] in said
    assert "\n" not in said
