"""A bundle of tiny networks with random weights, and degraded faces of its size."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.bundle import BundleConfig, Parts, write_bundle
from models.predictor.swinir import PRESETS as PREDICTORS
from models.predictor.swinir import SwinIR
from models.restorer import RestorationRule
from models.velocity.hdit import PRESETS as HDITS
from models.velocity.hdit import HDiT
from models.velocity.looformer import PRESETS as LOOFORMERS
from models.velocity.looformer import LooUFormer
from tests.conftest import picture
from tests.support.tiny_vae import build

SIZE = 32
"""Side of its faces in pixels."""


def write_tiny_bundle(
    folder: Path, seed: int = 0, rule: RestorationRule | None = None, **facts: Any
) -> Path:
    """Write a bundle whose networks are random, and whose flow is strong enough to be seen.

    Args:
        folder: of the bundle.
        seed: of the velocity and the predictor, so that another seed is another model.
        rule: which way an image takes; by default that of Latent-PMRF; with ``space="pixel"`` that
            of PMRF, without an autoencoder.
        facts: further fields of bundle.json, such as ``steps`` or ``training``.

    Returns:
        The folder.
    """
    rule = rule or RestorationRule()
    with _seeded(seed):
        predictor = SwinIR(PREDICTORS["tiny"])
        velocity = _moving(
            LooUFormer(LOOFORMERS["tiny"]) if rule.space == "latent" else HDiT(HDITS["tiny"])
        )
    vae = build() if rule.space == "latent" else None
    config = BundleConfig(rule=rule, weights={}, **{"size": SIZE, "steps": 2, **facts})
    write_bundle(folder, Parts(velocity, vae=vae, predictor=predictor), config, "# Tiny networks\n")
    return folder


def write_faces(folder: Path, count: int, size: int = SIZE) -> Path:
    """Draw ``count`` square pictures, every third in a sub-folder; returns the folder."""
    for number in range(count):
        below = folder / "more" if number % 3 == 2 else folder
        below.mkdir(parents=True, exist_ok=True)
        picture(number, size, size).save(below / f"face-{number}.png")
    return folder


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _moving(velocity: nn.Module) -> Any:
    """Replace weights that start at zero, with which the flow would stand still."""
    with torch.no_grad():
        for parameter in velocity.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn_like(parameter))
    return velocity
