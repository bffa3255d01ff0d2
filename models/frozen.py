"""The frozen networks around the flow, found on disk and identified: VAE, predictor, regressor.

Latents are only as good as the weights that made them, so whoever makes or reads latents loads the
networks here and compares identities: the digest of the weights, and the configuration.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from models.checkpoint import (
    CONFIG,
    WEIGHTS,
    CheckpointError,
    load_checkpoint,
    load_strict,
    uninitialised,
    weights_digest,
)
from models.configuration import config_from_dict
from models.predictor.swinir import SwinIR, SwinIRConfig, load_predictor
from models.vae.folder import load_sim_vae, needs_diffusers, read_config
from models.vae.public import PUBLIC_VAES, PublicVAE, load_diffusers_vae, load_public_vae
from models.vae.sim_vae import SimVAE
from models.velocity.hdit import HDiT, HDiTConfig
from models.velocity.looformer import LooUFormer, LooUFormerConfig

Network = TypeVar("Network", SwinIR, LooUFormer, HDiT)


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one network from another."""

    weights: str
    """SHA-256 of the tensors, from `weights_digest`; and of the scaling, where a folder has one."""
    config: Mapping[str, Any]
    """What the network was built from, as JSON values."""


def load_vae(where: str) -> tuple[SimVAE | PublicVAE, Identity]:
    """Load an autoencoder, and identify it; as `load_autoencoder`.

    The scaling of a folder of diffusers is part of its digest, as equal weights may differ in it;
    those of `PUBLIC_VAES` have their name for it.
    """
    vae = load_autoencoder(where)
    tensors = vae.state_dict()
    if isinstance(vae, SimVAE):
        return vae, Identity(weights_digest(tensors), asdict(vae.config))
    name, scaling = where.partition("=")[0], {"scale": vae.scale, "shift": vae.shift}
    if name not in PUBLIC_VAES:
        name = "AutoencoderKL"
        tensors |= {key: torch.tensor(x, dtype=torch.float64) for key, x in scaling.items()}
    return vae, Identity(weights_digest(tensors), {"name": name, **scaling})


def load_autoencoder(where: str) -> SimVAE | PublicVAE:
    """Load an autoencoder in float32 on the CPU, frozen.

    Args:
        where: a folder as `load_sim_vae` reads it, or that diffusers' ``AutoencoderKL`` has saved,
            whose latents are scaled as its configuration says; or a name of `PUBLIC_VAES` to be had
            from the hub, or NAME=FOLDER for such files that are here.

    Raises:
        CheckpointError: the files are not to be had, damaged, or of another network.
    """
    name, _, folder = where.partition("=")
    if name in PUBLIC_VAES:
        return load_public_vae(name, folder or None)
    if needs_diffusers(read_config(Path(where))):
        return load_diffusers_vae(where)
    return load_sim_vae(where).eval().requires_grad_(False)


def load_posterior_mean(where: str) -> tuple[SwinIR, Identity]:
    """Load a posterior-mean predictor in float32 on the CPU, frozen.

    Args:
        where: DifFace's published file; or a checkpoint that `save_checkpoint` wrote with the
            `SwinIRConfig` as its configuration: the folder, or the weights in it.

    Raises:
        CheckpointError: missing (and then where to get it), damaged, or of another network.
    """
    path = Path(where)
    folder = path.parent if path.name == WEIGHTS else path
    if path.is_dir() or (folder / CONFIG).is_file():
        model = _load_saved(folder, SwinIRConfig, SwinIR)
    else:
        model = load_predictor(path)
    return model, Identity(weights_digest(model.state_dict()), asdict(model.config))


def load_looformer(where: str | Path) -> LooUFormer:
    """Load a network that `trainers/flow.py` wrote, in float32 on the CPU, frozen.

    Args:
        where: folder `network` of the run.

    Raises:
        CheckpointError: missing, damaged, or of another kind of network.
    """
    return _load_saved(where, LooUFormerConfig, LooUFormer)


def load_hdit(where: str | Path) -> HDiT:
    """Load a velocity network of pixels that `trainers/flow.py` wrote, as `load_looformer`.

    Raises:
        CheckpointError: missing, damaged, or of another kind of network.
    """
    return _load_saved(where, HDiTConfig, HDiT)


def load_regressor(where: str) -> tuple[LooUFormer, Identity]:
    """Load what predicts the posterior mean of latents in float32 on the CPU, frozen.

    Args:
        where: folder `network` of a run of `trainers/flow.py --stage regressor`; its g is
            `models.rectified_flow.regress`.

    Raises:
        CheckpointError: missing, damaged, or of another kind of network.
    """
    network = load_looformer(where)
    config = network.config
    if config.condition_channels:
        raise CheckpointError(
            f"{Path(where) / CONFIG}: a network with a condition of {config.condition_channels} "
            "channels; a regressor has none: train it by --stage regressor"
        )
    return network, Identity(weights_digest(network.state_dict()), asdict(config))


def _load_saved(
    where: str | Path, config_type: type[Any], network_type: Callable[[Any], Network]
) -> Network:
    """Load a network that `save_checkpoint` wrote, in float32 on the CPU, frozen."""
    folder = Path(where)
    values, state_dict = load_checkpoint(folder)
    try:
        config = config_from_dict(config_type, values)
    except (TypeError, ValueError) as error:
        kind = config_type.__name__.removesuffix("Config")
        raise CheckpointError(f"{folder / CONFIG}: not of a {kind} ({error})") from error
    with uninitialised():
        network = network_type(config)
    load_strict(network, state_dict, folder / WEIGHTS)
    return network.eval().requires_grad_(False)


def check_takes(regressor: LooUFormer, shape: Sequence[int]) -> None:
    """Refuse a regressor that cannot take latents of ``shape``, [C, h, w].

    Raises:
        CheckpointError: of other channels, or with more levels than h and w can be halved.
    """
    channels, *sides = shape
    config = regressor.config
    if config.in_channels != channels:
        raise CheckpointError(
            f"a regressor of latents with {config.in_channels} channels, these have {channels}: "
            "train one on latents of this autoencoder (trainers/flow.py --stage regressor)"
        )
    factor = 1 << (len(config.widths) - 1)
    if any(side % factor for side in sides):
        raise CheckpointError(
            f"a regressor that divides the map by {factor}, latents of {sides[0]} x {sides[1]}"
        )
