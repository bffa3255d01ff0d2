"""Evaluation without Ray: the same workers in this process, small folders and jobs for them."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.metrics.catalog import METRICS, Judge
from pipelines.evaluate.config import EvaluateConfig, MeasureConfig, SetsConfig
from pipelines.evaluate.job import Evaluation
from pipelines.evaluate.summary import Summary
from pipelines.jobs.stage import Engine
from tests.conftest import picture
from tests.support.curation_jobs import InProcess

SIDE = 16
"""Pixels of the small pictures: as many as BRISQUE needs."""
CHEAP = ("psnr", "ssim", "colour", "brisque")
"""Metrics that need no weights and take a millisecond, three of which compare with HQ pictures."""


def job(output: object, methods: Mapping[str, object], **fields: Any) -> EvaluateConfig:
    """Return a small evaluation on CPUs that is not tracked; fields by their options.

    Args:
        output: its folder.
        methods: folders of restored pictures by the methods' names.
        fields: of `SetsConfig` and `MeasureConfig`; paths may be paths.
    """
    defaults: dict[str, Any] = {"metrics": CHEAP, "device": "cpu", "track": False}
    restored = tuple(f"{name}={folder}" for name, folder in methods.items())
    given = {"restored": restored, "bootstrap": 50, **defaults, **fields}
    parts: dict[str, Any] = {}
    for part, cls in (("sets", SetsConfig), ("measure", MeasureConfig)):
        names = [field.name for field in dataclasses.fields(cls)]
        values = {name: given.pop(name) for name in names if name in given}
        plain = {n: str(v) if hasattr(v, "joinpath") else v for n, v in values.items()}
        parts[part] = cls(**plain)
    return EvaluateConfig(output=str(output), **parts, **given)


def evaluate(
    output: object, methods: Mapping[str, object], engine: Engine | None = None, **fields: Any
) -> Summary:
    """Evaluate in this process; arguments as `job` takes them."""
    used = InProcess() if engine is None else engine
    return Evaluation(job(output, methods, **fields)).run(used)


def write_pictures(folder: Path, count: int = 4, *, noise: float = 0, side: int = SIDE) -> Path:
    """Write PNG files face-0 and so on: the same scenes for all, with noise of their own.

    Args:
        folder: is made.
        count: how many.
        noise: standard deviation in levels; those with the same are equal.
        side: pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng([number, round(100 * noise)])
        scene = np.asarray(picture(number, side, side))
        levels = np.clip(scene + rng.normal(0, noise, scene.shape), 0, 255)
        Image.fromarray(levels.astype(np.uint8)).save(folder / f"face-{number}.png")
    return folder


def numbers(summary: Summary) -> dict[str, dict[str, float | None]]:
    """Return the values by method and metric."""
    return {
        method: {name: value.value for name, value in one.values.items()}
        for method, one in summary.methods.items()
    }


def small_sets(patch: pytest.MonkeyPatch) -> list[int]:
    """Have FID's metrics compare the features of a small network, for Inception's file has 95 MB.

    Args:
        patch: undoes it.

    Returns:
        A list that grows by the number of pictures of each pass of the network.
    """
    passes: list[int] = []
    monkey = f"{__name__}:load_small_network"
    for name in ("fid", "fid_legacy"):
        patch.setitem(METRICS, name, replace(METRICS[name], loader=monkey))
    patch.setattr(f"{__name__}.PASSES", passes)
    return passes


PASSES: list[int] = []


def load_small_network(variant: str, folder: object, device: torch.device | str) -> Judge:
    """Load a convolution with seeded weights, whose means over places are 6 features."""
    generator = torch.Generator().manual_seed(len(variant))
    weights = torch.randn(6, 3, 3, 3, generator=generator).to(device)

    def compute(images: Tensor) -> Tensor:
        PASSES.append(len(images))
        return F.conv2d(images.float() / 255, weights).abs().mean(dim=(2, 3))

    return Judge(compute, hashlib.sha256(weights.cpu().numpy().tobytes()).hexdigest())
