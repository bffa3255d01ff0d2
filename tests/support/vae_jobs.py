"""Autoencoders compared without Ray: the same workers in this process, and small jobs for them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.vae.folder import save_sim_vae
from models.vae.sim_vae import SimVAE
from pipelines.evaluate.config import MeasureConfig
from pipelines.evaluate.vae.config import VAEsConfig
from pipelines.evaluate.vae.job import Reconstruction
from pipelines.evaluate.vae.result import Result
from pipelines.jobs.stage import Engine
from tests.support.curation_jobs import InProcess
from tests.support.tiny_vae import build

MEASURED = ("metrics", "weights", "track")
"""Options of a job that are the evaluation's."""


def job(given: object, output: object, vaes: dict[str, object], **fields: Any) -> VAEsConfig:
    """Return a small job on CPUs that is not tracked, with PSNR alone unless said otherwise."""
    measured = {name: fields.pop(name) for name in MEASURED if name in fields}
    measure = MeasureConfig(
        **{"metrics": ("psnr",), "device": "cpu", "bootstrap": 20, "track": False, **measured}
    )
    named = tuple(f"{name}={where}" for name, where in vaes.items())
    return VAEsConfig(vae=named, input=str(given), output=str(output), measure=measure, **fields)


def reconstruct(
    given: object,
    output: object,
    vaes: dict[str, object],
    engine: Engine | None = None,
    **fields: Any,
) -> Result:
    """Run the job in this process; arguments as `job` takes them."""
    used = InProcess() if engine is None else engine
    return Reconstruction(job(given, output, vaes, **fields)).run(used)


def write_constant(folder: Path, colour: Tensor) -> Path:
    """Write an autoencoder that makes one colour of everything; returns its folder.

    Args:
        folder: is made.
        colour: [3] in [-1, 1].
    """
    vae: SimVAE = build()
    last = vae.decoder.get_submodule("conv_out")
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(colour)
    save_sim_vae(vae, folder)
    return folder
