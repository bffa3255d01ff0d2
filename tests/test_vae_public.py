"""Public autoencoders keep Sim-VAE's contract, shown on small ones saved in the real layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.vae.folder import WEIGHTS_FILE
from models.vae.public import PUBLIC_VAES, PublicVAE, load_public_vae
from tests.support.tiny_vae import draw_images

REAL = {  # total parameters of the published networks, in millions, and what their configs say
    "sd15-f8c4": (83_653_863, {}),
    "sdxl-f8c4": (83_653_863, {"scaling_factor": 0.13025}),
    "flux-f8c16": (83_819_683, {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
}
by_name = pytest.mark.parametrize("name", PUBLIC_VAES)


def build_network(name: str, width: int = 8, **scaling: float) -> Any:
    """Build a network configured as the published one, whose first ``width`` is 128."""
    from diffusers import AutoencoderKL

    is_flux = name.startswith("flux")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(
            block_out_channels=(width, 2 * width, 4 * width, 4 * width),
            layers_per_block=2,
            norm_num_groups=8 if width == 8 else 32,
            latent_channels=16 if is_flux else 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            use_quant_conv=not is_flux,
            use_post_quant_conv=not is_flux,
            **{**REAL[name][1], **scaling},
        )


@by_name
def test_networks_are_the_published_ones(name: str) -> None:
    """At full width, the configurations used here have the published 83.65 and 83.82 M."""
    with torch.device("meta"):
        network = build_network(name, width=128)

    assert sum(parameter.numel() for parameter in network.parameters()) == REAL[name][0]


@by_name
@torch.no_grad()
def test_latents_are_moved_and_scaled(tmp_path: Path, name: str) -> None:
    """Latents are (z - shift) * scale in mean and spread, and decoding undoes it."""
    network = build_network(name).eval()
    network.save_pretrained(tmp_path)
    source = PUBLIC_VAES[name]
    images = draw_images(2, 16, 24)
    raw = network.encode(images).latent_dist

    vae = load_public_vae(name, tmp_path)
    posterior = vae.encode(images)

    assert posterior.mean.shape == (2, source.latent_channels, 2, 3)
    torch.testing.assert_close(posterior.mean, (raw.mean - source.shift) * source.scale)
    torch.testing.assert_close(posterior.std, raw.std * source.scale)
    torch.testing.assert_close(vae.decode(posterior.mode()), network.decode(raw.mean).sample)


def test_networks_are_frozen(tmp_path: Path) -> None:
    """A public autoencoder is never trained by accident."""
    build_network("sd15-f8c4").save_pretrained(tmp_path)
    vae = load_public_vae("sd15-f8c4", str(tmp_path))

    assert not vae.vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_attention_of_old_files_is_renamed(tmp_path: Path) -> None:
    """SD 1.5's file has query, key, value, proj_attn; some have them as 1x1 convolutions."""
    network = build_network("sd15-f8c4")
    network.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS_FILE)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, tensor in state.items():
        for new, name in old.items():
            if f"attentions.0.{new}." in key:
                key = key.replace(new, name)  # noqa: PLW2901  (one of four, then the loop is over)
                tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor  # noqa: PLW2901
                break
        renamed[key] = tensor.contiguous()
    save_file(renamed, tmp_path / WEIGHTS_FILE, metadata={"format": "pt"})

    loaded = load_public_vae("sd15-f8c4", tmp_path).vae.state_dict()

    assert sum("query" in key for key in renamed) == 4
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_weights_come_back_in_float32(tmp_path: Path) -> None:
    """Half-precision files serve too; the caller chooses the precision afterwards."""
    build_network("sdxl-f8c4").half().save_pretrained(tmp_path)

    assert next(load_public_vae("sdxl-f8c4", tmp_path).parameters()).dtype == torch.float32


def test_another_autoencoder_s_folder_is_refused(tmp_path: Path) -> None:
    """SDXL's folder under SD 1.5's name would scale latents wrongly: the error says both."""
    build_network("sdxl-f8c4").save_pretrained(tmp_path)

    with pytest.raises(ValueError, match=r"\(4, 0\.13025, 0\.0\).*\(4, 0\.18215, 0\.0\)"):
        load_public_vae("sd15-f8c4", tmp_path)


def test_another_architecture_s_weights_are_refused(tmp_path: Path) -> None:
    """Missing tensors are named, not drawn at random."""
    build_network("sd15-f8c4").save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS_FILE)
    del state["quant_conv.weight"]
    save_file(state, tmp_path / WEIGHTS_FILE)

    with pytest.raises(ValueError, match=r"missing \(1\): quant_conv\.weight"):
        load_public_vae("sd15-f8c4", tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    """The error says which file is missing."""
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(FileNotFoundError, match=f"has no {WEIGHTS_FILE}"):
        load_public_vae("sd15-f8c4", tmp_path)


@by_name
def test_weights_out_of_reach_say_where_to_get_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, the error names the files, their home, where to put them and the licence."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = PUBLIC_VAES[name]

    with pytest.raises(FileNotFoundError) as caught:
        load_public_vae(name)

    for part in (source.repository, "config.json", WEIGHTS_FILE, "folder", source.licence):
        assert part in str(caught.value)


def test_a_mistyped_folder_is_not_looked_up_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is no folder and no repository says that it is neither."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(FileNotFoundError, match="/no/such/folder: neither a local folder nor"):
        load_public_vae("sd15-f8c4", "/no/such/folder")


def test_unknown_names_are_refused() -> None:
    """The error lists the known ones."""
    with pytest.raises(ValueError, match="'sd3'; choose one of sd15-f8c4, sdxl-f8c4, flux-f8c16"):
        load_public_vae("sd3")


def test_wrong_inputs_are_refused() -> None:
    """Encode and decode check as Sim-VAE's do."""
    vae = PublicVAE(build_network("flux-f8c16"), scale=1.0, shift=0.0)

    assert (vae.downsample_factor, vae.latent_channels) == (8, 16)
    with pytest.raises(ValueError, match="multiples of 8"):
        vae.encode(torch.zeros(1, 3, 20, 16))
    with pytest.raises(ValueError, match=r"expected \[B, 16, h, w\]"):
        vae.decode(torch.zeros(1, 4, 2, 2))
