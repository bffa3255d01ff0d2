"""Autoencoders come back from the disk as they went, in the authors' layout and diffusers'."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.vae.folder import WEIGHTS_FILE, from_json, load_sim_vae, save_sim_vae, to_json
from models.vae.sim_vae import PRESETS, SimVAEConfig
from tests.support.tiny_vae import build, by_design, draw_images

RELEASED = {  # the authors' constructor arguments, and what their averaging adds
    "_class_name": "AutoencoderKLSim",
    "_diffusers_version": "0.34.0",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["EncoderBlock2D"] * 4,
    "up_block_types": ["DecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "mid_block_type": "Block2D",
    "mid_block_out_channel": 512,
    "layers_per_block": 2,
    "layers_mid_block": 3,
    "latent_channels": 32,
    "norm_type": "layer_norm",
    "norm_pos": "pre_norm",
    "upsample_method": "interpolate",
    "sample_size": 32,
    "scaling_factor": None,
    "shift_factor": None,
    "force_upcast": True,
    "decay": 0.9999,
    "min_decay": 0.0,
    "optimization_step": 150000,
    "update_after_step": 0,
    "use_ema_warmup": False,
    "inv_gamma": 1.0,
    "power": 0.6667,
}


def edit(folder: Path, **values: Any) -> None:
    """Change keys of a folder's configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


CLASSES = {
    "sim": "AutoencoderKLSim",
    "group_norm": "SimVAE",  # the authors' groups are always 32, the tiny one's 8
    "self_attention": "SimVAE",
    "pixel_shuffle": "AutoencoderKLSim",
    "sd_resize": "SimVAE",
    "sd_vae": "AutoencoderKL",
}


@by_design
def test_what_is_saved_loads_as_it_was(tmp_path: Path, design: str) -> None:
    """Every design comes back with its configuration and weights, under a class that fits it."""
    vae = build(design)
    save_sim_vae(vae.to(memory_format=torch.channels_last), tmp_path)

    loaded = load_sim_vae(tmp_path)

    state = loaded.state_dict()
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == CLASSES[design]
    assert loaded.config == vae.config
    assert all(torch.equal(state[key], value) for key, value in vae.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    with safe_open(tmp_path / WEIGHTS_FILE, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name: str) -> None:
    """Configurations come back equal through JSON text."""
    values = json.loads(json.dumps(to_json(PRESETS[name])))

    assert from_json(values, "config.json") == PRESETS[name]


def test_released_configuration_is_the_paper_s() -> None:
    """The authors' keys give f8c32; those of their moving average are ignored."""
    assert from_json(RELEASED, "config.json") == SimVAEConfig()


def test_norm_parameters_of_four_dimensions_are_accepted(tmp_path: Path) -> None:
    """Some of the authors' LayerNorms save (1, C, 1, 1) instead of (C,)."""
    vae = build()
    save_sim_vae(vae, tmp_path)
    state = load_file(tmp_path / WEIGHTS_FILE)
    reshaped = {
        key: value.reshape(1, -1, 1, 1) if ".norm." in key else value
        for key, value in state.items()
    }
    save_file(reshaped, tmp_path / WEIGHTS_FILE, metadata={"format": "pt"})

    loaded = load_sim_vae(tmp_path).state_dict()

    assert all(torch.equal(loaded[key], value) for key, value in state.items())


@torch.no_grad()
def test_diffusers_and_sd_row_read_each_other(tmp_path: Path) -> None:
    """An SD-VAE folder of ours is an AutoencoderKL's, and the other way round."""
    from diffusers import AutoencoderKL

    vae = build("sd_vae")
    images = draw_images()
    save_sim_vae(vae, tmp_path / "ours")

    theirs = AutoencoderKL.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False)
    theirs.save_pretrained(tmp_path / "theirs")
    back = load_sim_vae(tmp_path / "theirs")

    torch.testing.assert_close(
        theirs.encode(images).latent_dist.mean, vae.encode(images).mean, rtol=1e-4, atol=1e-5
    )
    assert torch.equal(back(images)[0], vae(images)[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": "UNet2DModel"}, "'UNet2DModel'; expected one of AutoencoderKLSim"),
        ({"norm_pos": "post_norm"}, "norm_pos is 'post_norm'; .* has 'pre_norm'"),
        ({"mid_block_type": "EncoderBlock2D"}, "mid_block_type is 'EncoderBlock2D'"),
        ({"down_block_types": ["DownEncoderBlock2D"] * 4}, "down_block_types"),
        ({"scaling_factor": 0.18215}, r"scaling_factor is 0\.18215; .*load_vae"),
        ({"upsample_method": "deconv"}, "resize 'deconv': Input should be 'interpolate'"),
        ({"latent_channels": 8}, r"misshapen .*conv_out.*\[8, 32, 3, 3\] instead of \[16, 32"),
        ({"layers_mid_block": 4}, r"missing \(12\): decoder\.mid_block\.resnets\.3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_autoencoders_are_refused(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    """The error names what came and what was expected; no weight is loaded halfway."""
    save_sim_vae(build(), tmp_path)
    edit(tmp_path, **values)

    with pytest.raises(ValueError, match=message):
        load_sim_vae(tmp_path)


def test_sd15_configuration_without_a_factor_is_refused() -> None:
    """Old configurations leave the factor to diffusers' default, and raw latents would be wrong."""
    values = {**to_json(PRESETS["sd-vae-f8c32"])}
    del values["scaling_factor"]

    with pytest.raises(ValueError, match=r"0\.18215"):
        from_json(values, "config.json")


def test_missing_keys_are_named() -> None:
    """A configuration without its width cannot be guessed."""
    values = {key: value for key, value in RELEASED.items() if key != "latent_channels"}

    with pytest.raises(ValueError, match=r"config\.json: .* needs the key 'latent_channels'"):
        from_json(values, "config.json")


@pytest.mark.parametrize("name", ["config.json", WEIGHTS_FILE])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    """The error says which of the two files is missing, and where."""
    save_sim_vae(build(), tmp_path)
    (tmp_path / name).unlink()

    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name} has no {name}"):
        load_sim_vae(tmp_path)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS_FILE])
def test_truncated_files_are_named(tmp_path: Path, name: str) -> None:
    """Half a file is an error that says which file to get again."""
    save_sim_vae(build(), tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-200])

    with pytest.raises(ValueError, match=name):
        load_sim_vae(tmp_path)


def test_an_interrupted_save_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration comes last: what a save left that died over an older one is refused."""
    save_sim_vae(build(), tmp_path)

    def die(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("models.vae.folder.save_file", die)
    with pytest.raises(OSError, match="no space"):
        save_sim_vae(build(), tmp_path)

    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_sim_vae(tmp_path)
