"""Tiny networks of every kind that a bundle has, and bundles of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.bundle import Bundle, in_memory, write_bundle
from models.bundle_facts import BundleConfig, Dtype
from models.predictor.swinir import PRESETS as PREDICTORS
from models.predictor.swinir import SwinIR
from models.restorer import RestorationRule, Restorer
from models.vae.public import PublicVAE
from models.velocity import hdit, looformer
from tests.conftest import picture
from tests.support.tiny_vae import build as build_vae

SIDE = 32
"""Of the faces of these bundles, in pixels."""


def seeded(build: Any, seed: int) -> Any:
    """Build a network with weights of its own, none of which is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: nn.Module = build()
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


def public_vae(scale: float = 0.3611, shift: float = 0.1159) -> PublicVAE:
    """Build a tiny autoencoder of diffusers', with scaled latents."""
    from diffusers import AutoencoderKL

    def build() -> Any:
        return AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
        )

    return PublicVAE(seeded(build, 3), scale=scale, shift=shift)


def bundle(
    kind: str = "latent", dtype: Dtype = "float32", *, seed: int = 0, **facts: Any
) -> Bundle:
    """Build a bundle: ``latent`` of a Sim-VAE, ``public`` of diffusers', ``regressed``, ``pixel``.

    Args:
        kind: which.
        dtype: what its weights are stored in.
        seed: of the velocity and the predictor, so that another seed is another model.
        facts: of its `BundleConfig`.
    """
    rule = RestorationRule(
        space="pixel" if kind == "pixel" else "latent",
        source="regressed" if kind == "regressed" else "posterior_mean",
    )
    tiny = looformer.PRESETS["tiny"]
    velocity = (
        seeded(lambda: hdit.HDiT(hdit.PRESETS["tiny"]), 10 * seed + 1)
        if kind == "pixel"
        else seeded(lambda: looformer.LooUFormer(tiny), 10 * seed + 1)
    )
    vae = {"pixel": lambda: None, "public": public_vae}.get(kind, build_vae)()
    predictor = replace(PREDICTORS["tiny"], image_size=SIDE)
    restorer = Restorer(
        rule,
        vae=vae if vae is None else vae.eval().requires_grad_(False),
        predictor=seeded(lambda: SwinIR(predictor), 10 * seed + 2),
        regressor=seeded(lambda: looformer.LooUFormer(tiny), 10 * seed + 4)
        if kind == "regressed"
        else None,
    )
    return in_memory(BundleConfig(rule=rule, size=SIDE, **facts), velocity, restorer, dtype)


def write_tiny_bundle(folder: Path, kind: str = "latent", **facts: Any) -> Path:
    """Write a bundle of two steps, as `bundle` builds it; returns its folder."""
    write_bundle(folder, bundle(kind, **{"steps": 2, **facts}))
    return folder


def write_faces(folder: Path, count: int, size: int = SIDE) -> Path:
    """Draw ``count`` square pictures, every third in a sub-folder; returns the folder."""
    for number in range(count):
        below = folder / "more" if number % 3 == 2 else folder
        below.mkdir(parents=True, exist_ok=True)
        picture(number, size, size).save(below / f"face-{number}.png")
    return folder
