"""Autoencoders on disk: the folder layout of diffusers and of the released Sim-VAE.

``config.json`` holds the constructor's arguments and ``diffusion_pytorch_model.safetensors`` the
weights. Three classes are read and written: ``AutoencoderKLSim``, the authors', ``AutoencoderKL``,
diffusers' name of the SD-VAE row, and ``SimVAE``, ours, for rows that neither can express.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoint import (
    CheckpointError,
    CheckpointNotFoundError,
    load_strict,
    read_state_dict,
    replace_file,
)
from models.configuration import config_from_dict
from models.vae.sim_vae import SimVAE, SimVAEConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

# What the other classes can vary and SimVAE cannot. An absent key has its class's default.
_AUTHORS_FIXED = {
    "in_channels": 3,
    "out_channels": 3,
    "mid_block_type": "Block2D",
    "norm_pos": "pre_norm",
    "scaling_factor": None,
    "shift_factor": None,
}
_DIFFUSERS_FIXED = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "latents_mean": None,
    "latents_std": None,
    "shift_factor": None,
    "scaling_factor": 1.0,
}
_SD_VAE: dict[str, Any] = {
    "norm_type": "group_norm",
    "mid": "self_attention",
    "mid_layers": 3,
    "resize": "sd",
    "res_block": "sd",
}


def save_sim_vae(
    vae: SimVAE, folder: str | Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write ``folder`` so that `load_sim_vae`, and the class it names, can read it.

    Args:
        vae: the autoencoder.
        folder: made if it is missing.
        state: its weights, if they are to be stored in another precision.
    """
    write_files(folder, to_json(vae.config), vae.state_dict() if state is None else state)


def write_files(folder: str | Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write both files of an autoencoder.

    The configuration is written last: a folder that has it is complete.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    metadata = {"format": "pt"}
    replace_file(folder / WEIGHTS_FILE, lambda path: save_file(tensors, path, metadata=metadata))
    text = json.dumps(config, indent=2) + "\n"
    replace_file(folder / CONFIG_FILE, lambda path: path.write_text(text))


def load_sim_vae(folder: str | Path) -> SimVAE:
    """Read an autoencoder of Table 2 or 3, such as the released Sim-VAE-c32, in float32.

    Raises:
        CheckpointError: a file is missing or damaged, or holds something else.
    """
    folder = Path(folder)
    config = from_json(read_config(folder), str(folder / CONFIG_FILE))
    weights = folder / WEIGHTS_FILE
    with torch.device("meta"):  # no initial weights: the tensors of the file take the places
        vae = SimVAE(config)
    load_strict(vae, _flat_norms(read_state_dict(weights)), weights)
    return vae.float()


def _flat_norms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give norm parameters the shape (C,); some of the authors' layers save (1, C, 1, 1)."""
    return {
        key: value.flatten() if ".norm." in key and value.shape[2:] == (1, 1) else value
        for key, value in state.items()
    }


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a folder that has both files.

    Raises:
        CheckpointError: a file is missing, or the configuration is no JSON object.
    """
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise CheckpointNotFoundError(
            f"{folder} has no {' and no '.join(missing)}; expected the folder of a saved "
            f"autoencoder, with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}; expected an object")
    return values


def to_json(config: SimVAEConfig) -> dict[str, Any]:
    """Write a configuration as the class that is best known to other programs."""
    values = asdict(config)
    shared = {
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
    }
    stages = len(config.block_out_channels)
    if all(values[key] == value for key, value in _SD_VAE.items()):
        return {
            "_class_name": "AutoencoderKL",
            **shared,
            **_DIFFUSERS_FIXED,
            "norm_num_groups": config.norm_groups,
            "down_block_types": ["DownEncoderBlock2D"] * stages,
            "up_block_types": ["UpDecoderBlock2D"] * stages,
        }
    is_authors = (config.mid, config.res_block) == ("res_blocks", "sim") and config.resize != "sd"
    if is_authors and (config.norm_type == "layer_norm" or config.norm_groups == 32):
        return {
            "_class_name": "AutoencoderKLSim",
            **shared,
            **_AUTHORS_FIXED,
            "layers_mid_block": config.mid_layers,
            "mid_block_out_channel": config.block_out_channels[-1],
            "norm_type": config.norm_type,
            "norm_groups": config.norm_groups,
            "upsample_method": config.resize,
            "down_block_types": ["EncoderBlock2D"] * stages,
            "up_block_types": ["DecoderBlock2D"] * stages,
        }
    return {"_class_name": "SimVAE", **values}


def from_json(values: Mapping[str, Any], source: str) -> SimVAEConfig:
    """Read a configuration of any of the three classes; keys that none knows are ignored.

    Args:
        values: what ``config.json`` holds.
        source: its path, for the errors.

    Raises:
        CheckpointError: another class, or arguments that make another network.
    """
    name = values.get("_class_name")
    if name not in _READERS:
        raise CheckpointError(
            f"{source} describes a {name!r}; expected one of {', '.join(_READERS)}: "
            "is this the folder of an autoencoder?"
        )
    try:
        return _READERS[name](values)
    except KeyError as error:
        raise CheckpointError(f"{source}: a {name} needs the key {error}") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def needs_diffusers(values: Mapping[str, Any]) -> bool:
    """Tell whether a configuration is of an ``AutoencoderKL`` that `SimVAE` cannot express.

    Most are, by the scaling of their latents; `models.vae.public` runs them by diffusers' own code.
    """
    if values.get("_class_name") != "AutoencoderKL":
        return False
    try:
        from_json(values, CONFIG_FILE)
    except CheckpointError:
        return True
    return False


def _from_authors(values: Mapping[str, Any]) -> SimVAEConfig:
    _refuse_other(values, _AUTHORS_FIXED, "Sim-VAE")
    widths = tuple(values["block_out_channels"])
    shape = {
        "mid_block_out_channel": widths[-1],
        "down_block_types": ["EncoderBlock2D"] * len(widths),
        "up_block_types": ["DecoderBlock2D"] * len(widths),
    }
    _refuse_other(values, shape, "Sim-VAE")
    ours = {
        "latent_channels": values["latent_channels"],
        "block_out_channels": widths,
        "layers_per_block": values["layers_per_block"],
        "mid_layers": values["layers_mid_block"],
        "norm_type": values.get("norm_type", "layer_norm"),
        "norm_groups": values.get("norm_groups", 32),
        "resize": values.get("upsample_method", "interpolate"),
    }
    return config_from_dict(SimVAEConfig, ours)


def _from_diffusers(values: Mapping[str, Any]) -> SimVAEConfig:
    # The default of diffusers is SD 1.5's factor, which configs of that time leave out.
    _refuse_other({"scaling_factor": 0.18215, **values}, _DIFFUSERS_FIXED, "SD-VAE")
    widths = tuple(values["block_out_channels"])
    shape = {
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
    }
    _refuse_other(values, shape, "SD-VAE")
    ours = {
        "latent_channels": values["latent_channels"],
        "block_out_channels": widths,
        "layers_per_block": values["layers_per_block"],
        "norm_groups": values.get("norm_num_groups", 32),
    }
    return config_from_dict(SimVAEConfig, ours | _SD_VAE)


def _from_ours(values: Mapping[str, Any]) -> SimVAEConfig:
    return config_from_dict(SimVAEConfig, values, ignore_unknown=True)


_READERS: dict[Any, Callable[[Mapping[str, Any]], SimVAEConfig]] = {
    "AutoencoderKLSim": _from_authors,
    "AutoencoderKL": _from_diffusers,
    "SimVAE": _from_ours,
}


def _refuse_other(values: Mapping[str, Any], fixed: Mapping[str, Any], name: str) -> None:
    for key, expected in fixed.items():
        value = values.get(key, expected)
        if value != expected:
            raise ValueError(
                f"{key} is {value!r}; a {name} here has {expected!r}. `models.frozen.load_vae` "
                "loads other folders of diffusers' AutoencoderKL, with their scaling"
            )
