"""Regressed sources: what is stored, what names them, what is refused, who may train on them."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.reading.loader import Memory
from datasets.reading.order import Order, WeightedSet
from infra.config import pretty_json
from infra.errors import UsageError, UserError
from models.checkpoint import CheckpointError, save_checkpoint
from models.frozen import load_regressor
from models.rectified_flow import euler, regress
from models.velocity.hdit import PRESETS as PIXEL_NETWORKS
from models.velocity.hdit import HDiT
from pipelines.encode import __main__ as encode
from pipelines.encode.config import EncodeRule, VerifyConfig
from pipelines.encode.verify import problems, recomputed
from tests.support.encoding_jobs import (
    array,
    estimated,
    manifest_of,
    members,
    run,
    write_images,
    write_networks,
    write_regressor,
)
from trainers.loop.config import LoopConfig
from trainers.loop.noise import Noise
from trainers.recipes.flow import FlowTask
from trainers.recipes.flow_config import PRESETS, FlowConfig
from trainers.recipes.flow_pairs import from_latents

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return networks, images, and latent sets of each source."""
    folder = tmp_path_factory.mktemp("world")
    write_networks(folder)
    write_images(folder)
    regressor = str(write_regressor(folder / "regressor"))
    fields: dict[str, Any] = {"draws": 2, "dtype": "float32", "batch": None}
    run(folder, folder / "posterior_mean", **fields)
    run(folder, folder / "regressed", source="regressed", regressor=regressor, **fields)
    run(folder, folder / "lq", source="lq", **fields)
    return folder


def test_a_regressed_source_is_g_of_the_encoded_posterior_mean(world: Path) -> None:
    """x_0 = z + net(z, 0) with z = E(posterior mean); targets and draws are untouched."""
    network, _ = load_regressor(str(world / "regressor" / "network"))
    plain, regressed = members(world / "posterior_mean"), members(world / "regressed")
    sources = [name for name in plain if ".source_" in name]
    for name in sources:
        z = torch.from_numpy(array(plain[name])).float()[None]
        with torch.no_grad():
            expected = z + network(z, torch.zeros(1))
        np.testing.assert_allclose(array(regressed[name]), expected[0], rtol=1e-4, atol=1e-5)
        assert not np.allclose(array(regressed[name]), z[0], atol=0.01)

    assert len(sources) == 14
    assert all(plain[name] == regressed[name] for name in plain.keys() - set(sources))


def test_a_sample_of_the_posterior_is_regressed(world: Path, tmp_path: Path) -> None:
    """--posterior says what of E is given to g: here the sample that a set without g stores."""
    fields: dict[str, Any] = {"posterior": "sample", "dtype": "float32", "batch": None, "limit": 2}
    regressor = str(world / "regressor" / "network")
    run(world, tmp_path / "plain", **fields)
    run(world, tmp_path / "regressed", source="regressed", regressor=regressor, **fields)
    network, _ = load_regressor(regressor)
    found = members(tmp_path / "regressed")
    for name, content in members(tmp_path / "plain").items():
        if ".source_" in name:
            z = torch.from_numpy(array(content)).float()[None]
            with torch.no_grad():
                expected = regress(network, z)[0]
            np.testing.assert_allclose(array(found[name]), expected, rtol=1e-4, atol=1e-5)


def test_g_is_one_euler_step() -> None:
    """Of the whole interval, with the network as the velocity."""
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x_t.sin() + t[:, None, None, None]

    assert torch.equal(regress(velocity, x), euler(velocity, x, steps=1))


def test_the_identity_names_the_regressor_and_of_other_sources_nothing(world: Path) -> None:
    """So sets that were made before there was one are what they were."""
    _, who = load_regressor(str(world / "regressor" / "network"))
    regressed = manifest_of(world / "regressed")["identity"]
    plain = manifest_of(world / "posterior_mean")["identity"]

    assert regressed["regressor"] == who.weights
    assert regressed["regressor_config"] == json.loads(json.dumps(who.config))
    assert regressed.keys() - plain.keys() == {"regressor", "regressor_config"}
    assert plain.keys() <= regressed.keys()


def test_another_regressor_is_another_set(world: Path, tmp_path: Path) -> None:
    """Refused by its digest; the folder is left as it is."""
    other = str(write_regressor(tmp_path, seed=1))
    with pytest.raises(UsageError, match=r"regressor: '\w+' -> '\w+'"):
        run(world, world / "regressed", source="regressed", regressor=other, draws=2)


@pytest.mark.parametrize("posterior", ["mode", "sample"])
def test_a_regressed_set_verifies_and_is_computed_again(
    world: Path, tmp_path: Path, posterior: str
) -> None:
    """From pixels, through the regressor that its configuration names."""
    regressor = str(world / "regressor" / "network")
    run(world, tmp_path / "set", source="regressed", regressor=regressor, posterior=posterior)

    assert list(problems(tmp_path / "set")) == []
    assert list(recomputed(tmp_path / "set", VerifyConfig(recompute=7))) == []
    other = str(write_regressor(tmp_path, seed=1))
    with pytest.raises(UsageError, match=r"regressor: '\w+' -> '\w+'.*--regressor"):
        list(recomputed(tmp_path / "set", VerifyConfig(recompute=1, regressor=other)))
    with pytest.raises(UsageError, match="with source posterior_mean"):
        list(recomputed(world / "posterior_mean", VerifyConfig(recompute=1, regressor=other)))


def test_the_bound_says_what_the_regressor_does(world: Path) -> None:
    """The VAE's bound is the same; what g does to the latents is measured apart."""
    plain, regressed = (
        manifest_of(world / name)["distortion"] for name in ("posterior_mean", "regressed")
    )
    network, _ = load_regressor(str(world / "regressor" / "network"))
    found, ratios = members(world / "posterior_mean"), []
    for key in regressed["keys"]:
        label = json.loads(next(c for n, c in found.items() if n.endswith(f"/{key}.json")))
        draw = label["draws"]["0"]
        target = "target_g0" if draw["gray_target"] else f"target_{int(draw['flip'])}"
        x, z = (torch.from_numpy(array(found[f"{key}.{s}.npy"])) for s in (target, "source_0"))
        with torch.no_grad():
            g = regress(network, z.float()[None])[0]
        ratios.append(float((g - x).norm() / (z - x).norm()))
    page = (world / "regressed" / "report.html").read_text()

    assert {name: regressed[name] for name in plain} == plain
    assert regressed["regressed_error"] == pytest.approx(np.mean(ratios), rel=1e-3)
    assert f"{regressed['psnr_regressed_decoded']:.2f} dB against x" in page
    assert page.count("data:image/jpeg") == 36


def test_a_regressor_that_cannot_take_these_latents_is_refused(world: Path, tmp_path: Path) -> None:
    """Other channels, with both numbers; a network with a condition; another architecture."""
    wide = write_regressor(tmp_path / "wide", in_channels=8)
    with pytest.raises(UsageError, match=r"--regressor .*with 8 channels, these have 4"):
        run(world, tmp_path / "set", source="regressed", regressor=str(wide))
    conditional = write_regressor(tmp_path / "conditional", condition_channels=4)
    with pytest.raises(UsageError, match=r"--regressor .*a condition of 4 channels"):
        run(world, tmp_path / "set", source="regressed", regressor=str(conditional))
    deep = write_regressor(
        tmp_path / "deep",
        widths=(16,) * 5,
        depths=(1,) * 5,
        attentions=("neighborhood",) * 5,
    )
    with pytest.raises(UsageError, match=r"divides the map by 16, latents of 4 x 4"):
        run(world, tmp_path / "set", source="regressed", regressor=str(deep))
    pixels = HDiT(PIXEL_NETWORKS["tiny"])
    save_checkpoint(tmp_path / "pixels", pixels.state_dict(), asdict(pixels.config))
    with pytest.raises(CheckpointError, match="not of a LooUFormer"):
        load_regressor(str(tmp_path / "pixels"))


def test_the_command_line_wants_a_regressor_where_it_is_used(world: Path) -> None:
    """Not given, and given for another source, are refused; the dry run counts it."""
    with pytest.raises(UsageError, match="no --vae, --predictor, --regressor"):
        encode.main(["--preset", "elir-source", "--input", "x", "--output", "y"])
    with pytest.raises(ValueError, match="with source posterior_mean"):
        EncodeRule(regressor="runs/regressor/network")
    regressor = str(world / "regressor" / "network")
    said = estimated(world, world / "dry", source="regressed", regressor=regressor)
    assert "a regressed latent" in said


def trained_on(world: Path, latents: str, **fields: Any) -> FlowTask:
    """Open a tiny flow on one of the sets."""
    config: FlowConfig = replace(
        PRESETS["tiny"],
        model="tiny",
        latents=str(world / latents),
        loop=LoopConfig(workers=0),
        degradation=None,
        **fields,
    )
    return FlowTask(config, CPU)


MATRIX: dict[tuple[str, str], str] = {
    ("posterior_mean", "posterior_mean"): "",
    ("posterior_mean", "regressed"): "source: 'regressed' -> 'posterior_mean'",
    ("posterior_mean", "lq"): "source: 'lq' -> 'posterior_mean'",
    ("noise", "posterior_mean"): "",
    ("noise", "regressed"): "source: 'regressed' -> 'posterior_mean'",
    ("noise", "lq"): "source: 'lq' -> 'posterior_mean'",
    ("lq", "posterior_mean"): "source: 'posterior_mean' -> 'lq'",
    ("lq", "regressed"): "source: 'regressed' -> 'lq'",
    ("lq", "lq"): "",
    ("regressed", "posterior_mean"): "give --regressor",
    ("regressed", "regressed"): "",
    ("regressed", "lq"): "source: 'lq' -> 'posterior_mean'",
}
"""What a trainer of a source says to latents of a source, without --regressor; empty: it trains."""


@pytest.mark.parametrize(("source", "latents"), MATRIX, ids="-on-".join)
def test_a_trainer_takes_the_sources_it_can(world: Path, source: str, latents: str) -> None:
    """No source is taken for another."""
    refusal = MATRIX[source, latents]
    if not refusal:
        assert trained_on(world, latents, source=source).samples.weighted_sets[0].size > 0
        return
    with pytest.raises(UserError, match=refusal):
        trained_on(world, latents, source=source)


def test_both_ways_to_regressed_sources_are_one(world: Path) -> None:
    """Regressed by the encoding, or as they are loaded: the same pairs; never regressed twice."""
    regressor = str(world / "regressor" / "network")
    found = []
    for latents, given in (
        ("posterior_mean", regressor),
        ("regressed", ""),
        ("regressed", regressor),
    ):
        task = trained_on(world, latents, source="regressed", regressor=given)
        order = Order([WeightedSet(size=task.samples.weighted_sets[0].size)], digest="x", seed=0)
        batch = task.samples.load(order.at(torch.arange(2).numpy()), Memory("reused"))
        noise = Noise(seed=0, step=0, positions=range(2), total=2, device=CPU)
        is_regressed = latents == "regressed"
        found.append(from_latents(task.restorer, batch, noise, is_regressed=is_regressed))

    for other in found[1:]:
        torch.testing.assert_close(found[0].source, other.source, rtol=1e-4, atol=1e-5)
        assert torch.equal(found[0].target, other.target)


def test_a_trainer_compares_the_regressor_and_keeps_conditions_apart(
    world: Path, tmp_path: Path
) -> None:
    """Another regressor than the set's; a condition that a regressed set lacks; other channels."""
    regressor = str(world / "regressor" / "network")
    other = str(write_regressor(tmp_path, seed=1))
    with pytest.raises(UserError, match=r"regressor: '\w+' -> '\w+'"):
        trained_on(world, "regressed", source="regressed", regressor=other)
    with pytest.raises(UserError, match="conditional flow is shown what a regressor regresses"):
        trained_on(world, "regressed", source="regressed", conditional=True)
    task = trained_on(
        world, "posterior_mean", source="regressed", regressor=regressor, conditional=True
    )
    assert task.restorer.regressor is not None
    wide = str(write_regressor(tmp_path / "wide", in_channels=8))
    with pytest.raises(UserError, match=r"--regressor .*with 8 channels, these have 4"):
        trained_on(world, "posterior_mean", source="regressed", regressor=wide)


def test_pictures_of_a_regressed_set_need_its_regressor(world: Path) -> None:
    """What is validated on pictures passes g online: without it, the option is asked for."""
    config: FlowConfig = replace(
        PRESETS["tiny"],
        model="tiny",
        latents=str(world / "regressed"),
        images=(str(world / "images"),),
        vae=str(world / "vae"),
        predictor=str(world / "predictor"),
        source="regressed",
        degradation=None,
        loop=LoopConfig(workers=0),
    )
    assert config.required()["regressor"]
    assert not replace(config, images=()).required()["regressor"]
    task = FlowTask(replace(config, regressor=str(world / "regressor" / "network")), CPU)
    assert "psnr" in task.validate(task.network).metrics


def test_a_set_without_the_fields_of_a_regressor_is_still_complete(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A manifest from before there were regressors is this run's, and nothing is to do."""
    manifest = manifest_of(world / "posterior_mean")
    (world / "posterior_mean" / "manifest.json").write_bytes(pretty_json(manifest))
    engine = run(world, world / "posterior_mean", draws=2, dtype="float32", batch=None)

    assert "regressor" not in manifest["identity"]
    assert engine.units == []
    assert "nothing to do" in capsys.readouterr().out
