"""The public autoencoders of paper Table 1 and any other ``AutoencoderKL``, as Sim-VAE is used.

Their networks are diffusers'. Diffusion models train on their latents moved and scaled to about
unit variance, (z - shift) * scale, and so does the flow: `PublicVAE` applies both in ``encode`` and
undoes them in ``decode``. The source noise of the flow is then relative to the scaled latents.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoint import (
    CheckpointError,
    CheckpointNotFoundError,
    hub_remedy,
    load_strict,
    read_state_dict,
)
from models.vae.autoencoder import Posterior, check_images, check_latent
from models.vae.folder import CONFIG_FILE, WEIGHTS_FILE, read_config, write_files


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicVAESource:
    """Where an autoencoder is published, and what its latents need."""

    repository: str
    """Hugging Face repository."""
    subfolder: str
    """Folder in it with both files; empty for the top."""
    latent_channels: int
    """Channels C of the latent."""
    scale: float
    """Factor on the latents."""
    shift: float
    """Taken from the latents before scaling."""
    licence: str
    """Under which the weights may be used."""


PUBLIC_VAES: dict[str, PublicVAESource] = {  # reconstruction in Table 1: PSNR / LPIPS / FID
    "sd15-f8c4": PublicVAESource(  # 30.463 / 0.044 / 6.937
        repository="stable-diffusion-v1-5/stable-diffusion-v1-5",  # runwayml's own is gone
        subfolder="vae",
        latent_channels=4,
        scale=0.18215,
        shift=0.0,
        licence="CreativeML OpenRAIL-M",
    ),
    "sdxl-f8c4": PublicVAESource(  # 32.396 / 0.039 / 5.136
        repository="madebyollin/sdxl-vae-fp16-fix",
        subfolder="",
        latent_channels=4,
        scale=0.13025,
        shift=0.0,
        licence="MIT",
    ),
    "flux-f8c16": PublicVAESource(  # 38.763 / 0.008 / 0.611
        repository="black-forest-labs/FLUX.1-dev",
        subfolder="vae",
        latent_channels=16,
        scale=0.3611,
        shift=0.1159,
        licence="FLUX.1 [dev] Non-Commercial License; log in and accept it on the hub first",
    ),
}

# SD 1.5's file has the names that attention layers had before diffusers 0.16.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class PublicVAE(nn.Module):
    """A frozen ``AutoencoderKL`` whose latents are scaled for a flow.

    Args:
        vae: diffusers' network.
        scale: factor on the latents.
        shift: taken from them before.
    """

    def __init__(self, vae: Any, *, scale: float, shift: float) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False).eval()
        self.scale = scale
        self.shift = shift

    @property
    def config(self) -> dict[str, Any]:
        """The network's configuration and its scaling, as diffusers has them, as JSON values."""
        own = {key: value for key, value in self.vae.config.items() if not key.startswith("_")}
        scaling = {"scaling_factor": self.scale, "shift_factor": self.shift}
        values: dict[str, Any] = json.loads(json.dumps({**own, **scaling}))
        return values

    @property
    def downsample_factor(self) -> int:
        """Pixels per latent cell along one axis."""
        return 1 << (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels C of the latent."""
        return int(self.vae.config.latent_channels)

    def encode(self, images: Tensor) -> Posterior:
        """Turn images [B, 3, H, W] in [-1, 1] into a posterior over scaled latents [B, C, h, w].

        Raises:
            TypeError: images are not floats.
            ValueError: not three channels, or a side that the factor does not divide.
        """
        check_images(images, self.downsample_factor)
        raw = self.vae.encode(images).latent_dist
        return Posterior(
            (raw.mean - self.shift) * self.scale, raw.logvar + 2 * math.log(self.scale)
        )

    def decode(self, latent: Tensor) -> Tensor:
        """Turn scaled latents [B, C, h, w] into images [B, 3, H, W], about [-1, 1], not clamped.

        Raises:
            ValueError: not C channels.
        """
        check_latent(latent, self.latent_channels)
        images: Tensor = self.vae.decode(latent / self.scale + self.shift).sample
        return images


def save_public_vae(
    vae: PublicVAE, folder: str | Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write ``folder`` so that `load_diffusers_vae`, and diffusers itself, can read it.

    Args:
        vae: the autoencoder.
        folder: made if it is missing.
        state: its weights, as of `PublicVAE`, if they are to be stored in another precision.
    """
    weights = vae.state_dict() if state is None else state
    own = {name.removeprefix("vae."): tensor for name, tensor in weights.items()}
    write_files(folder, {"_class_name": "AutoencoderKL", **vae.config}, own)


def load_public_vae(name: str, source: str | Path | None = None) -> PublicVAE:
    """Load a public autoencoder in float32, frozen.

    Args:
        name: a key of `PUBLIC_VAES`.
        source: a local folder with both files, or a hub repository (a mirror, say) with them in
            the published subfolder; None for the published repository.

    Raises:
        ValueError: an unknown name.
        CheckpointError: the files are not to be had, damaged, or of another autoencoder.
    """
    if name not in PUBLIC_VAES:
        raise ValueError(f"unknown public VAE {name!r}; choose one of {', '.join(PUBLIC_VAES)}")
    expected = PUBLIC_VAES[name]
    if source is not None and Path(source).is_dir():
        folder = Path(source)
    else:
        folder = _download(expected, str(source or expected.repository))
    vae = _configured(folder)
    came = (vae.config.latent_channels, vae.config.scaling_factor, vae.config.shift_factor or 0.0)
    if came != (expected.latent_channels, expected.scale, expected.shift):
        raise CheckpointError(
            f"{folder}: latent channels, scale and shift are {came}; those of "
            f"{expected.repository} are "
            f"{(expected.latent_channels, expected.scale, expected.shift)}: choose the name that "
            f"fits the folder, of {', '.join(PUBLIC_VAES)}, or give the folder without a name"
        )
    return PublicVAE(_with_weights(vae, folder), scale=expected.scale, shift=expected.shift)


def load_diffusers_vae(folder: str | Path) -> PublicVAE:
    """Load a folder that diffusers' ``AutoencoderKL`` has saved, in float32, frozen.

    Scale and shift are those of its configuration, by which diffusers' pipelines move latents; an
    absent scaling factor is diffusers' own default, 0.18215, and one of null is none.

    Raises:
        CheckpointError: a file is missing or damaged, or is of another kind of network or scaling.
    """
    folder = Path(folder)
    vae = _configured(folder)
    scale = 1.0 if vae.config.scaling_factor is None else float(vae.config.scaling_factor)
    shift = float(vae.config.shift_factor or 0.0)
    means = vae.config.latents_mean, vae.config.latents_std
    if not 0 < scale < math.inf or not math.isfinite(shift) or means != (None, None):
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: scaling_factor {scale}, shift_factor {shift}, latents_mean "
            f"and latents_std {means}; expected a positive factor, a finite shift, and no mean or "
            "deviation of each channel, which flows here do not know"
        )
    return PublicVAE(_with_weights(vae, folder), scale=scale, shift=shift)


def _download(expected: PublicVAESource, repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    subfolder = expected.subfolder or None
    try:
        paths = [
            hf_hub_download(repository, file, subfolder=subfolder)
            for file in (CONFIG_FILE, WEIGHTS_FILE)
        ]
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        where = "/".join(filter(None, (expected.repository, expected.subfolder)))
        raise CheckpointNotFoundError(
            f"{repository}: neither a local folder nor had from the hub ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}{hub_remedy(error)}). Put "
            f"{CONFIG_FILE} and {WEIGHTS_FILE} of {where} into a folder and give its path. "
            f"Licence: {expected.licence}"
        ) from error
    return Path(paths[0]).parent


def _configured(folder: Path) -> Any:
    """Build the network of a folder's configuration, without weights."""
    from diffusers import AutoencoderKL

    values = read_config(folder)
    if values.get("_class_name") != "AutoencoderKL":
        raise CheckpointError(
            f"{folder / CONFIG_FILE} describes a {values.get('_class_name')!r}; expected an "
            "'AutoencoderKL'"
        )
    try:
        with torch.device("meta"):
            return AutoencoderKL.from_config(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: of no AutoencoderKL ({error})") from error


def _with_weights(vae: Any, folder: Path) -> Any:
    weights = folder / WEIGHTS_FILE
    load_strict(vae, _modern(read_state_dict(weights)), weights)
    return vae.float()


def _modern(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the attention layers of old files; their 1x1 convolutions become linear layers."""
    renamed = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if "attentions" in parts and parts[-2] in _OLD_ATTENTION:
            parts[-2] = _OLD_ATTENTION[parts[-2]]
            renamed[".".join(parts)] = tensor.flatten(1) if tensor.ndim == 4 else tensor
        else:
            renamed[key] = tensor
    return renamed
