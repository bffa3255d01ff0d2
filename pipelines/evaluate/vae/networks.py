"""An autoencoder that is compared: where it lies, which it is, and what it costs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from infra.config import digest
from infra.copies import at_hand
from infra.errors import UsageError, UserError
from infra.folders.opening import is_uri
from infra.paths import path_of
from models.bundle_facts import BUNDLE
from models.checkpoint import CheckpointError
from models.flops import counted
from models.frozen import Identity, load_vae
from models.vae.folder import CONFIG_FILE, WEIGHTS_FILE
from models.vae.public import PUBLIC_VAES, PublicVAE
from models.vae.sim_vae import SimVAE

INSIDE = ("", "vae", "bundle/vae")
"""Where the autoencoder of a folder is: of its own, a training run's or a bundle's, a flow's."""
BYTES = 2  # of a value in bfloat16
OF_ENCODER = ("encoder.", "quant_conv.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """An autoencoder, without its weights."""

    name: str
    """That the user gave it."""
    where: str
    """What `models.frozen.load_vae` loads, once it is at hand."""
    identity: Identity
    network: SimVAE | PublicVAE
    """On the meta device: shapes alone."""

    @property
    def mark(self) -> str:
        """Identify it by weights and configuration."""
        return digest(asdict(self.identity))

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return [C, h, w] for pictures of (width, height)."""
        factor = self.network.downsample_factor
        return self.network.latent_channels, size[1] // factor, size[0] // factor

    def costs(self, size: tuple[int, int]) -> dict[str, Any]:
        """Count parameters, operations and values of a latent, for pictures of (width, height)."""
        channels, height, width = shape = self.latent_shape(size)
        values = channels * height * width
        images = torch.empty(1, 3, size[1], size[0], device="meta")
        latents = torch.empty(1, *shape, device="meta")
        return {
            "factor": self.network.downsample_factor,
            "latent": list(shape),
            "values": values,
            "bytes_bfloat16": BYTES * values,
            "parameters": self.parameters(),
            "flops": {
                "encoder": counted(self.network.encode, images),
                "decoder": counted(self.network.decode, latents),
            },
        }

    def parameters(self) -> dict[str, int]:
        """Count the parameters of encoder and decoder, each with the convolution beside it."""
        counts = {"encoder": 0, "decoder": 0}
        for name, parameter in self.network.named_parameters():
            is_encoder = name.removeprefix("vae.").startswith(OF_ENCODER)
            counts["encoder" if is_encoder else "decoder"] += parameter.numel()
        return counts


def look(folders: Mapping[str, str]) -> list[Compared]:
    """Load autoencoders, one after the other, to learn which they are.

    Raises:
        UsageError: one is not there, or damaged.
    """
    found = []
    for name, folder in folders.items():
        try:
            where = inside(folder)
            network, identity = load_vae(at_hand(where))
        except (CheckpointError, OSError, UserError) as error:
            raise UsageError(f"{name}={folder}: {error}") from error
        found.append(
            Compared(name=name, where=where, identity=identity, network=network.to("meta"))
        )
    return found


def inside(folder: str) -> str:
    """Return the folder of an autoencoder for what a user named: itself, or of a run or bundle.

    Raises:
        CheckpointError: there is none.
    """
    if folder.partition("=")[0] in PUBLIC_VAES:
        return folder
    path = path_of(folder)
    candidates = [path / part if part else path for part in INSIDE]
    for candidate in candidates:
        if all((candidate / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)):
            return str(candidate)
    if not is_uri(folder) and not path.exists():
        said = "no such folder"
    elif (path / BUNDLE).is_file():
        said = "a bundle without an autoencoder: its flow is one of pixels"
    else:
        said = f"no autoencoder: no {CONFIG_FILE} with {WEIGHTS_FILE} here, in vae/ or bundle/vae/"
    raise CheckpointError(
        f"{said}; give the folder of an autoencoder in diffusers' layout, of a training run or of "
        f"a bundle, or one of {', '.join(PUBLIC_VAES)}"
    )


def load(where: str, identity: Identity) -> SimVAE | PublicVAE:
    """Load in a worker the autoencoder that the command saw.

    Raises:
        UserError: it is not at hand, or another lies there now.
    """
    try:
        network, found = load_vae(at_hand(where))
    except (CheckpointError, OSError) as error:
        raise UserError(f"{where}, on a worker: {error}") from error
    if found.weights != identity.weights or dict(found.config) != dict(identity.config):
        raise UserError(
            f"{where} is {found.weights[:12]} on a worker, and the command began with "
            f"{identity.weights[:12]}; give all machines the same files and run the same command "
            "again"
        )
    return network
