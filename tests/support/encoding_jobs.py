"""What the tests of encoding share: small networks on disk, an image set, jobs without Ray."""

import dataclasses
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.degradation.parameters import PRESETS as DEGRADATIONS
from datasets.degradation.parameters import DegradationConfig
from datasets.shards import read_manifest
from infra.config import pretty_json
from infra.paths import AnyPath
from models.checkpoint import save_checkpoint
from models.predictor.swinir import PRESETS as PREDICTORS
from models.predictor.swinir import SwinIR
from models.vae.folder import save_sim_vae
from models.velocity.looformer import PRESETS as REGRESSORS
from models.velocity.looformer import LooUFormer, LooUFormerConfig
from pipelines.curate.config import CropRule, CurateConfig, CutRule
from pipelines.curate.job import Curation
from pipelines.encode.config import EncodeConfig, EncodeRule
from pipelines.encode.estimate import estimate
from pipelines.encode.job import Encoding
from pipelines.jobs.scorer_choice import ScorerChoice
from tests.conftest import picture
from tests.support.curation_jobs import InProcess
from tests.support.tiny_vae import build

SIZE = 32
FEW, MANY = 5, 8  # images of the sets of `grown_sets`


def write_networks(folder: Path, seed: int = 0) -> Path:
    """Write a tiny autoencoder and a tiny predictor with random weights; returns the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = build()
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.add_(0.01 * seed * torch.randn_like(parameter))
        predictor = SwinIR(PREDICTORS["tiny"])
    save_sim_vae(vae, folder / "vae")
    save_checkpoint(folder / "predictor", predictor.state_dict(), asdict(predictor.config))
    return folder


def write_regressor(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny regressor with random weights; returns its folder, as a trainer exports it."""
    config: LooUFormerConfig = replace(REGRESSORS["tiny"], **changes)
    with torch.random.fork_rng():
        torch.manual_seed(100 + seed)
        network = LooUFormer(config)
    save_checkpoint(folder / "network", network.state_dict(), asdict(config))
    return folder / "network"


def write_images(folder: Path, count: int = 7) -> Path:
    """Draw ``count`` small pictures and curate them; returns the image set."""
    (folder / "raw").mkdir(parents=True)
    for number in range(count):
        picture(number, SIZE + 8 * number, SIZE + 9).save(folder / "raw" / f"photo-{number}.png")
    return curated(folder)


def curated(folder: Path) -> Path:
    """Curate the pictures in `raw` into an image set with both splits; returns it."""
    Curation(curation(folder)).run(InProcess())
    return folder / "images"


def curation(folder: Path) -> CurateConfig:
    """Return the job that `curated` does."""
    return CurateConfig(
        input=(str(folder / "raw"),),
        output=str(folder / "images"),
        crop=CropRule(mode="resize", size=SIZE),
        scorer=ScorerChoice(name="none"),
        cut=CutRule(samples_per_shard=4, val_fraction=0.3),
        track=False,
    )


def job(folder: AnyPath, output: AnyPath, **fields: Any) -> EncodeConfig:
    """Return a small job on the networks and images in ``folder``; a rule's fields go into it."""
    defaults: dict[str, Any] = {
        "input": str(folder / "images"),
        "output": str(output),
        "vae": str(folder / "vae"),
        "predictor": str(folder / "predictor"),
        "device": "cpu",
        "samples_per_shard": 3,
        "batch": 2,
        "track": False,
    }
    given = defaults | fields
    names = [field.name for field in dataclasses.fields(EncodeRule)]
    rule: dict[str, Any] = {name: given.pop(name) for name in names if name in given}
    return EncodeConfig(rule=EncodeRule(**rule), **given)


def run(folder: AnyPath, output: AnyPath, **fields: Any) -> InProcess:
    """Encode in this process."""
    engine = InProcess()
    Encoding(job(folder, output, **fields)).run(engine)
    return engine


def estimated(
    folder: AnyPath, output: AnyPath, engine: InProcess | None = None, **fields: Any
) -> str:
    """Return what a dry run says, whose worker measures in this process."""
    return estimate(job(folder, output, **fields), engine or InProcess())


class Stopping(InProcess):
    """An engine that dies after ``units`` units."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.left = units

    def run(self, *arguments: Any) -> Iterator[dict[str, Any]]:
        """Do as many units as are left."""
        for result in super().run(*arguments):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            yield result


def manifest_of(folder: AnyPath) -> dict[str, Any]:
    """Return the manifest of a set that must be there."""
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def published(folder: AnyPath) -> dict[str, bytes]:
    """Return the bytes of everything that makes the set: shards, tables, manifest."""
    manifest = manifest_of(folder)
    names = [entry["name"] for entry in manifest["shards"]] + list(manifest["files"])
    return {name: (folder / name).read_bytes() for name in [*names, "manifest.json"]}


@contextmanager
def grown_sets(folder: Path) -> Iterator[Path]:
    """Write networks, an image set of `FEW`, one that has more (`MANY`); half of the draws gray.

    In `earlier` lie two draws of the small set, by one image at a time.
    """
    write_networks(folder)
    write_images(folder, FEW)
    write_images(folder / "more", MANY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEGRADATIONS, "gray", DegradationConfig(gray_probability=0.5))
        encode_few(folder, folder / "earlier")
        yield folder


def encode_few(world: AnyPath, output: AnyPath, **fields: Any) -> None:
    """Encode two draws of the small image set; the preset `gray` is the test's."""
    run(world, output, **{"draws": 2, "degradation": "gray", "batch": None, **fields})


def encode_many(world: AnyPath, output: AnyPath, **fields: Any) -> None:
    """Encode two draws of the image set in `more`."""
    encode_few(world, output, **{"input": str(world / "more" / "images"), **fields})


def copied(folder: AnyPath) -> tuple[int, int]:
    """Return how many targets and sources a set says it has copied."""
    parts = [generation.get("reused", {}) for generation in manifest_of(folder)["generations"]]
    return sum(p.get("targets", 0) for p in parts), sum(p.get("sources", 0) for p in parts)


def bytes_of(folder: AnyPath) -> dict[str, Any]:
    """Return everything that makes a set, but for what its manifest says it copied."""
    found: dict[str, Any] = published(folder)
    manifest = json.loads(found["manifest.json"])
    for generation in manifest["generations"]:
        generation.pop("reused", None)
    found["manifest.json"] = pretty_json(manifest)
    return found


def members(folder: Path) -> dict[str, bytes]:
    """Return every member of every tar, by name; a name that comes twice is a mistake."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                name = info.name if not info.name.endswith(".json") else f"{path.name}/{info.name}"
                assert name not in found
                found[name] = file.read()
    return found


def array(content: bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Read a `.npy` member with NumPy's own reader."""
    return np.load(io.BytesIO(content)).astype(np.float64)
