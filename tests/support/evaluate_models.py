"""Evaluations of tiny models in process: an image set with both splits, and jobs for it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from infra.folders.bucket_path import BucketPath
from pipelines.evaluate.config import EvaluateConfig, InputConfig, MeasureConfig, SetsConfig
from pipelines.evaluate.restoring import run
from pipelines.evaluate.summary import Summary
from pipelines.jobs.stage import Engine
from pipelines.restore.config import ModelRule
from tests.conftest import picture
from tests.support.curation_jobs import InProcess
from tests.support.published_sets import finish, image_shards
from tests.support.tiny_bundle import SIDE

VAL = ("face-0", "face-1", "more/face-2")
"""Keys of the validation split."""
PARTS = {"sets": SetsConfig, "measure": MeasureConfig, "given": InputConfig, "rule": ModelRule}


def write_set(folder: Path, side: int = SIDE) -> Path:
    """Publish an image set of drawings, two of them for training; returns its folder."""
    images = [
        (key, np.asarray(picture(number, side, side)))
        for number, key in enumerate((*VAL, "other-0", "other-1"))
    ]
    shards = [
        *image_shards(folder, images[len(VAL) :]),
        *image_shards(folder, images[: len(VAL)], split="val"),
    ]
    return finish(folder, shards, "image set")


def parts(fields: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Put fields, which are named as their options, into the parts of a configuration."""
    given = {
        "metrics": ("psnr", "ssim", "colour", "indrmse"),
        **{"device": "cpu", "track": False, "bootstrap": 50, "degradation": "pmrf-128"},
        **defaults,
        **fields,
    }
    plain = {n: str(v) if isinstance(v, Path | BucketPath) else v for n, v in given.items()}
    return {
        name: cls(**{f.name: plain.pop(f.name) for f in dataclasses.fields(cls) if f.name in plain})
        for name, cls in PARTS.items()
    } | plain


def job(output: object, model: object, given: object, **fields: Any) -> EvaluateConfig:
    """Return a small job on CPUs that is not tracked."""
    return EvaluateConfig(output=str(output), **parts(fields, model=model, input=given))


def evaluate(
    output: object, model: object, given: object, engine: Engine | None = None, **fields: Any
) -> Summary:
    """Restore and evaluate in this process; arguments as `job` takes them."""
    return run(job(output, model, given, **fields), InProcess() if engine is None else engine)
