"""The frozen networks: found in every form, identified by what they hold."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.checkpoint import CheckpointError, save_checkpoint, uninitialised, weights_digest
from models.frozen import load_hdit, load_looformer, load_posterior_mean, load_vae
from models.predictor.swinir import PRESETS, SwinIR
from models.vae.folder import save_sim_vae
from models.vae.public import PUBLIC_VAES, PublicVAE
from models.vae.sim_vae import SimVAE
from models.velocity import hdit, looformer
from tests.support.tiny_vae import build, draw_images
from tests.test_vae_public import build_network


def predictor(folder: Path) -> SwinIR:
    """Save a tiny predictor of random weights in ``folder`` and return it."""
    model = SwinIR(PRESETS["tiny"]).eval()
    save_checkpoint(folder, model.state_dict(), asdict(model.config))
    return model


def test_a_predictor_is_found_by_its_folder_or_its_weights(tmp_path: Path) -> None:
    """Both are one network, with the configuration that lies beside."""
    model = predictor(tmp_path / "predictor")
    lq = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for where in (tmp_path / "predictor", tmp_path / "predictor" / "model.safetensors"):
        loaded, identity = load_posterior_mean(str(where))

        assert torch.equal(loaded.posterior_mean(lq), model.posterior_mean(lq))
        assert identity.weights == weights_digest(model.state_dict())
        assert identity.config == asdict(PRESETS["tiny"])
        assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize(
    ("build_network", "load"),
    [
        (lambda: SwinIR(PRESETS["tiny"]), lambda folder: load_posterior_mean(str(folder))[0]),
        (lambda: looformer.LooUFormer(looformer.PRESETS["tiny"]), load_looformer),
        (lambda: hdit.HDiT(hdit.PRESETS["tiny"]), load_hdit),
    ],
)
def test_a_loaded_network_is_the_saved_one(
    tmp_path: Path, build_network: Callable[[], Any], load: Callable[[Path], nn.Module]
) -> None:
    """Every parameter and every buffer, those too that no file holds, though none is drawn."""
    saved = build_network()
    save_checkpoint(tmp_path, saved.state_dict(), asdict(saved.config))
    loaded = load(tmp_path)

    for named in ("named_parameters", "named_buffers"):
        expected, found = (dict(getattr(network, named)()) for network in (saved, loaded))
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), name


def test_kernels_that_are_to_be_loaded_are_not_drawn() -> None:
    """PyTorch's own generator stands still; outside of the block it moves."""
    state = torch.get_rng_state()
    with uninitialised():
        nn.Conv2d(3, 8, 3, bias=False)
        nn.Linear(8, 8, bias=False)
        assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        nn.Linear(8, 8, bias=False)
        assert not torch.equal(torch.get_rng_state(), state)


def test_another_kind_of_checkpoint_is_refused(tmp_path: Path) -> None:
    """The configuration is not a SwinIR's."""
    save_checkpoint(tmp_path, {"weight": torch.zeros(1)}, {"depth": 3})

    with pytest.raises(CheckpointError, match="not of a SwinIR"):
        load_posterior_mean(str(tmp_path))


def test_the_published_predictor_says_where_it_is_had(tmp_path: Path) -> None:
    """Absent, its address is in the message."""
    with pytest.raises(CheckpointError, match=r"https://github\.com/zsyOAOA/DifFace/releases"):
        load_posterior_mean(str(tmp_path / "swinir_restoration512_L1.pth"))


def test_an_autoencoder_is_known_by_its_weights(tmp_path: Path) -> None:
    """The digest is that of the tensors; it changes with any of them."""
    vae = build()
    save_sim_vae(vae, tmp_path / "one")
    _, first = load_vae(str(tmp_path / "one"))
    with torch.no_grad():
        next(vae.parameters()).flatten()[0] += 1e-3
    save_sim_vae(vae, tmp_path / "two")
    loaded, second = load_vae(str(tmp_path / "two"))

    assert first.config == second.config == asdict(vae.config)
    assert first.weights != second.weights == weights_digest(vae.state_dict())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("scaling", [{}, {"scaling_factor": 0.5, "shift_factor": 0.25}])
@torch.no_grad()
def test_a_folder_of_diffusers_is_scaled_as_its_configuration_says(
    tmp_path: Path, scaling: dict[str, float]
) -> None:
    """Diffusers' own factor of 0.18215 included, which a configuration may leave out."""
    theirs = build_network("sd15-f8c4", **scaling).eval()
    theirs.save_pretrained(tmp_path)
    if not scaling:
        path = tmp_path / "config.json"
        values = json.loads(path.read_text())
        assert values.pop("scaling_factor") == 0.18215
        path.write_text(json.dumps(values))
    scale, shift = theirs.config.scaling_factor, theirs.config.shift_factor or 0.0
    images = draw_images(2, 16, 24)
    raw = theirs.encode(images).latent_dist

    vae, identity = load_vae(str(tmp_path))
    posterior = vae.encode(images)

    torch.testing.assert_close(posterior.mean, (raw.mean - shift) * scale)
    torch.testing.assert_close(vae.decode(posterior.mode()), theirs.decode(raw.mean).sample)
    assert identity.config == {"name": "AutoencoderKL", "scale": scale, "shift": shift}
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_equal_weights_of_another_scaling_are_another_autoencoder(tmp_path: Path) -> None:
    """Their latents are not one another's, so their digests differ; without scaling, a Sim-VAE."""
    for factor in (0.5, 0.25, 1.0):
        build_network("sd15-f8c4", scaling_factor=factor).save_pretrained(tmp_path / str(factor))
    loaded = [load_vae(str(tmp_path / name)) for name in ("0.5", "0.25", "1.0")]

    assert len({identity.weights for _, identity in loaded}) == 3
    assert [type(vae) for vae, _ in loaded] == [PublicVAE, PublicVAE, SimVAE]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scaling_factor": 0.0}, "expected a positive factor"),
        ({"latents_mean": [0.0] * 4}, "no mean or deviation"),
        ({"down_block_types": ["NoSuchBlock"] * 4}, "of no AutoencoderKL"),
        ({"latent_channels": 8, "scaling_factor": 0.5}, "misshapen"),
    ],
)
def test_a_scaling_that_is_not_known_here_is_refused(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    """So is a configuration that is not of the weights."""
    build_network("sd15-f8c4").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    with pytest.raises(CheckpointError, match=message):
        load_vae(str(tmp_path))


def test_a_public_autoencoder_is_named_with_its_folder(tmp_path: Path) -> None:
    """NAME=FOLDER: files that are not there are asked for in that folder."""
    (tmp_path / "empty").mkdir()
    for name in PUBLIC_VAES:
        with pytest.raises(CheckpointError, match=str(tmp_path / "empty")):
            load_vae(f"{name}={tmp_path / 'empty'}")
