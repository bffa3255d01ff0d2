"""The frozen networks: found in every form, identified by what they hold."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from models.checkpoint import CheckpointError, save_checkpoint, weights_digest
from models.frozen import load_posterior_mean, load_vae
from models.predictor.swinir import PRESETS, SwinIR
from models.vae.folder import save_sim_vae
from models.vae.public import PUBLIC_VAES
from tests.support.tiny_vae import build


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


def test_a_public_autoencoder_is_named_with_its_folder(tmp_path: Path) -> None:
    """NAME=FOLDER: files that are not there are asked for in that folder."""
    (tmp_path / "empty").mkdir()
    for name in PUBLIC_VAES:
        with pytest.raises(CheckpointError, match=str(tmp_path / "empty")):
            load_vae(f"{name}={tmp_path / 'empty'}")
