"""The frozen networks around a flow, loaded as far as it needs them, and told apart by digests."""

from dataclasses import dataclass, field
from typing import Any

import torch

from infra.copies import at_hand
from infra.errors import UserError
from infra.paths import path_of
from models.checkpoint import CheckpointError
from models.frozen import load_posterior_mean, load_regressor, load_vae
from models.predictor.swinir import SwinIR
from models.vae.public import PublicVAE
from models.vae.sim_vae import SimVAE
from models.velocity.looformer import LooUFormer
from trainers.recipes.flow_config import FlowConfig


@dataclass(slots=True)
class FlowNetworks:
    """What is there, on the device; the digests are of the weights."""

    vae: SimVAE | PublicVAE | None = None
    predictor: SwinIR | None = None
    regressor: LooUFormer | None = None
    digests: dict[str, str] = field(default_factory=dict)
    """By the name of the option; of those that are there."""


def load_networks(config: FlowConfig, device: torch.device) -> FlowNetworks:
    """Load the networks that the configuration names.

    Raises:
        UserError: weights that are not at hand; says which option.
    """
    networks = FlowNetworks()
    option = ""
    try:
        if config.vae and config.space == "latent":
            option = f"--vae {config.vae}"
            vae, who = load_vae(at_hand(config.vae))
            networks.vae, networks.digests["vae"] = vae.to(device), who.weights
        if config.predictor:
            option = f"--predictor {config.predictor}"
            predictor, who = load_posterior_mean(at_hand(config.predictor))
            networks.predictor, networks.digests["predictor"] = predictor.to(device), who.weights
        if config.regressor:
            option = f"--regressor {config.regressor}"
            regressor, who = load_regressor(at_hand(str(path_of(config.regressor))))
            networks.regressor, networks.digests["regressor"] = regressor.to(device), who.weights
    except (CheckpointError, OSError) as error:
        raise UserError(f"{option}: {error}") from error
    return networks


def belonging(config: FlowConfig, digests: dict[str, str]) -> dict[str, Any]:
    """Return the digests of those networks that a pair depends on, before any regressor."""
    names = ("vae",) if config.source == "lq" else ("vae", "predictor")
    return {name: digests[name] for name in names if name in digests}
