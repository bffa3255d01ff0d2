"""A tiny autoencoder of every design of Table 2, and images for it."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from models.vae.sim_vae import PRESETS, SimVAE

TINY = PRESETS["tiny"]
SD = {"norm_type": "group_norm", "mid": "self_attention", "resize": "sd", "res_block": "sd"}
DESIGNS: dict[str, dict[str, Any]] = {
    "sim": {},
    "group_norm": {"norm_type": "group_norm"},
    "self_attention": {"mid": "self_attention"},
    "pixel_shuffle": {"resize": "pixel_shuffle"},
    "sd_resize": {"resize": "sd"},
    "sd_vae": SD,
}
by_design = pytest.mark.parametrize("design", DESIGNS)


def build(design: str = "sim", *, checkpointing: bool = False, **changes: Any) -> SimVAE:
    """Build a tiny autoencoder with weights that depend on nothing but its configuration."""
    config = dataclasses.replace(TINY, **DESIGNS[design], **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = SimVAE(config, gradient_checkpointing=checkpointing)
        for name, parameter in vae.named_parameters():
            if "norm" in name:  # initial norms are the identity, which would hide a swap
                torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    return vae


def draw_images(batch: int = 1, height: int = 32, width: int = 32) -> Tensor:
    """Draw images in [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, height, width, generator=generator) * 2 - 1


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Return the error in L2, relative to what is expected."""
    return ((result.detach().float() - expected).norm() / expected.norm()).item()
