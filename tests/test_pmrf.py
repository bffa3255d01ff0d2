"""PMRF's published layouts load as a bundle of the method pmrf, under the names that they have."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from infra.errors import UsageError
from models import pmrf
from models.bundle import load_bundle
from models.checkpoint import CheckpointError
from models.noise import NamedNoise, Purpose
from models.pmrf import is_published, load_published
from models.predictor import swinir
from models.predictor.swinir import SwinIR
from models.rectified_flow import euler
from models.velocity import hdit
from models.velocity.hdit import HDiT
from pipelines.restore.__main__ import main
from pipelines.restore.bundles import open_bundle
from tests.support.tiny_bundle import seeded

ARGUMENTS: dict[str, Any] = {  # of the constructor, as the hub's config.json has them
    "arch": "hdit_tiny",
    "betas": [0.9, 0.95],
    "conditional": False,
    "ema_decay": 0.9999,
    "eps": 0.0,
    "lr": 0.0005,
    "mmse_model_arch": "swinir_tiny",
    "mmse_model_ckpt_path": None,
    "mmse_noise_std": 0.1,
    "num_flow_steps": 50,
    "stage": "flow",
    "t_schedule": "stratified_uniform",
    "weight_decay": 0.01,
}
SWINIR = replace(swinir.PRESETS["tiny"], image_size=32)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give two small networks names, as the published ones have theirs."""
    monkeypatch.setitem(pmrf.VELOCITIES, "hdit_tiny", hdit.PRESETS["tiny"])
    monkeypatch.setitem(pmrf.PREDICTORS, "swinir_tiny", SWINIR)


def networks(seed: int = 1) -> tuple[HDiT, SwinIR]:
    """Build both networks with weights of their own."""
    velocity: HDiT = seeded(lambda: HDiT(hdit.PRESETS["tiny"]), seed)
    predictor: SwinIR = seeded(lambda: SwinIR(SWINIR), seed + 1)
    return velocity, predictor


def stored(velocity: HDiT, predictor: SwinIR) -> dict[str, Tensor]:
    """Name the tensors as PMRF does; its metrics are there too."""
    named = {f"model.{name}": value for name, value in velocity.state_dict().items()}
    named |= {f"mmse_model.{name}": value for name, value in predictor.state_dict().items()}
    return {**named, "fid.inception.Conv2d_1a_3x3.conv.weight": torch.ones(1)}


def write_hub(folder: Path, *, leave_out: tuple[str, ...] = (), **arguments: Any) -> Path:
    """Write the hub's two files."""
    folder.mkdir()
    tensors = {name: value for name, value in stored(*networks()).items() if name not in leave_out}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**ARGUMENTS, **arguments}))
    return folder


def write_lightning(path: Path) -> Path:
    """Write a checkpoint of PMRF's training; its averages are those of the hub's file."""
    raw, (averaged, predictor) = networks(7)[0], networks()
    raw.load_state_dict({**raw.state_dict(), **dict(averaged.named_buffers())})
    ema = {
        "decay": 0.9999,
        "num_updates": 9,
        "shadow_params": [value.detach() for value in averaged.parameters()],
        "collected_params": [],
    }
    arguments = {**ARGUMENTS, "betas": (0.9, 0.95)}
    content = {"state_dict": stored(raw, predictor), "ema": ema, "hyper_parameters": arguments}
    torch.save({"epoch": 3849, "global_step": 1_051_050, **content}, path)
    return path


def by_hand(lq: Tensor, velocity: HDiT, predictor: SwinIR) -> Tensor:
    """PMRF as its paper has it: x_0 = clip(f(y)) + 0.1 eps, Euler to 1, clip."""
    mean = predictor(lq).clip(0, 1)
    eps = NamedNoise(0, ["a"]).normal(mean.shape[1:], Purpose.SOURCE_NOISE)
    return euler(velocity, mean + 0.1 * eps, 3).clip(0, 1)


def test_both_layouts_restore_as_pmrf_does(tmp_path: Path) -> None:
    """In pixels, from the clipped prediction with sigma_s of the file; the averages count."""
    lq = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    expected = by_hand(lq, *networks())
    for path in (write_hub(tmp_path / "hub"), write_lightning(tmp_path / "pmrf.ckpt")):
        bundle = open_bundle(str(path))
        config = bundle.config
        assert (config.method, config.alignment, config.size) == ("pmrf", "ffhq", 32)
        assert config.rule.sigma_s == 0.1
        restored = bundle.restorer.restore(bundle.velocity, lq, NamedNoise(0, ["a"]), steps=3)
        torch.testing.assert_close(restored, expected)
    assert load_published(tmp_path / "hub").config == load_published(tmp_path / "pmrf.ckpt").config


def test_a_published_model_becomes_a_bundle(tmp_path: Path) -> None:
    """Export writes it in this project's form, with its licences."""
    hub = write_hub(tmp_path / "hub", mmse_noise_std=0.2)
    assert main(["export", str(hub), str(tmp_path / "bundle")]) == 0

    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.config == load_published(hub).config
    assert bundle.config.rule.sigma_s == 0.2
    assert "non-commercial" in (tmp_path / "bundle" / "README.md").read_text()


def test_the_published_networks_are_the_full_ones() -> None:
    """160,460,210 parameters, 149 tensors, and a predictor of 732 entries, by name."""
    with torch.device("meta"):
        velocity = HDiT(pmrf.VELOCITIES["hdit_ImageNet256Sp4"])
        predictor = SwinIR(pmrf.PREDICTORS["swinir_L"])
    names = stored(velocity, predictor)

    assert sum(value.numel() for value in velocity.parameters()) == 160_460_210
    assert len(velocity.state_dict()) == 149
    assert len(predictor.state_dict()) == 732
    assert names["model.patch_in.proj.weight"].shape == (256, 48)
    assert names["model.mapping.blocks.1.up_proj.weight"].shape == (4608, 768)
    assert names["model.down_levels.1.1.self_attn.pos_emb.freqs"].shape == (8, 8)
    assert names["model.mid_level.7.self_attn.scale"].shape == (16,)
    assert names["model.splits.1.fac"].shape == (1,)
    table = names["mmse_model.layers.7.residual_group.blocks.5.attn.relative_position_bias_table"]
    assert table.shape == (225, 6)
    assert names["mmse_model.conv_first.1.weight"].shape == (180, 192, 3, 3)


def test_weights_without_augmentations_load(tmp_path: Path) -> None:
    """PMRF embeds none: where its weights leave the embedding out, it adds nothing."""
    absent = ("model.aug_emb.weight", "model.aug_in_proj.weight")
    velocity = load_published(write_hub(tmp_path / "hub", leave_out=absent)).velocity
    whole, _ = networks()
    torch.nn.init.zeros_(whole.aug_in_proj.weight)
    x_t, t = torch.ones(1, 3, 32, 32), torch.tensor([0.3])

    assert torch.equal(velocity(x_t, t), whole(x_t, t))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "hdit_XL9"}, "arch is 'hdit_XL9'; known are hdit_ImageNet256Sp4, hdit_XL2"),
        ({"mmse_model_arch": None}, "mmse_model_arch is None; known are swinir_L"),
        ({"stage": "mmse"}, "stage is 'mmse', and only 'flow' is read here"),
        ({"conditional": True}, "conditional is True, and only False"),
        ({"eps": 0.1}, "eps is 0.1, and only 0 is"),
        ({"arch": "hdit_XL2"}, "weights of another architecture than HDiT"),
    ],
)
def test_other_models_of_pmrf_are_refused(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Which argument, what is read here, and where to get the right files."""
    hub = write_hub(tmp_path / "hub", **arguments)
    assert is_published(hub)
    with pytest.raises(CheckpointError, match=message) as error:
        load_published(hub)
    assert f"get config.json and model.safetensors of https://huggingface.co/{pmrf.REPOSITORY}" in (
        str(error.value)
    )


@pytest.mark.parametrize("name", ["model.mid_level.0.ff.up_proj.weight", "mmse_model.norm.bias"])
def test_an_incomplete_key_list_is_refused(name: str, tmp_path: Path) -> None:
    """The missing tensor is named, as its network has it."""
    hub = write_hub(tmp_path / "hub", leave_out=(name,))
    with pytest.raises(UsageError, match=rf"missing \(1\): {name.partition('.')[2]}.*get config"):
        open_bundle(str(hub))


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    """Weights that are not there, a checkpoint of something else, one that is cut short."""
    hub = write_hub(tmp_path / "hub")
    (hub / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"hub/model.safetensors: no such file; get config.json"):
        open_bundle(str(hub))
    torch.save({"state_dict": {"weight": torch.ones(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(UsageError, match=r"its hyper_parameters: no arguments of PMRF's; get"):
        open_bundle(str(tmp_path / "other.ckpt"))
    whole = write_lightning(tmp_path / "pmrf.ckpt").read_bytes()
    (tmp_path / "pmrf.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"pmrf.ckpt: damaged"):
        open_bundle(str(tmp_path / "pmrf.ckpt"))


def test_the_users_command_asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--model ohayonguy/PMRF_blind_face_image_restoration` is a name on the hub, in its cache."""
    cache = tmp_path / "cache" / f"models--{pmrf.REPOSITORY.replace('/', '--')}"
    commit = "0" * 40
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    (cache / "snapshots").mkdir()
    write_hub(cache / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    assert open_bundle(pmrf.REPOSITORY).config.method == "pmrf"
    with pytest.raises(UsageError, match=r"org/name: neither a folder here nor had from the"):
        open_bundle("org/name")
