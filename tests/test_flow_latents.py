"""What a flow takes over from its latents' manifest, cell by cell, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets.degradation.parameters import PRESETS as DEGRADATIONS
from datasets.degradation.parameters import DegradationConfig, degradation_preset
from infra.config import pretty_json, to_dict
from infra.errors import UsageError, UserError
from tests.support.encoding_jobs import (
    array,
    manifest_of,
    members,
    run,
    write_images,
    write_networks,
)
from tests.support.training_sets import write_latent_set
from trainers.loop.agreement import refuse_other_run
from trainers.loop.checkpoints import Checkpoint
from trainers.loop.config import LoopConfig
from trainers.recipes.data import sweep
from trainers.recipes.flow import FlowTask
from trainers.recipes.flow_config import PRESETS, FlowConfig
from trainers.recipes.flow_latents import degradation, resolved
from trainers.recipes.flow_pairs import from_images

CPU = torch.device("cpu")
MADE = {"mode": "pmrf-128", "sample": "gfpgan-v1"}
"""The posterior of two latent sets, and the degradation of each."""


def identity(posterior: str, degraded: str, **entries: Any) -> dict[str, Any]:
    """Return what a latent set's manifest says of how it was made."""
    degraded_by = to_dict(degradation_preset(degraded))
    return {"posterior": posterior, "degradation": degraded_by, "seed": 0, **entries}


def config(**fields: Any) -> FlowConfig:
    """Return a tiny flow that leaves open what its latents decide."""
    loop = LoopConfig(workers=0)
    base = replace(PRESETS["tiny"], model="tiny", degradation=None, loop=loop)
    return replace(base, **fields)


@pytest.fixture(scope="module", params=MADE)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a latent set with a posterior and a degradation."""
    folder = tmp_path_factory.mktemp("latents") / request.param
    return write_latent_set(folder, identity=identity(request.param, MADE[request.param]))


@pytest.mark.parametrize("given", [None, "mode", "sample"])
def test_the_posterior_is_that_of_the_latents_or_refused(made: Path, given: str | None) -> None:
    """The field, both values, and what to do."""
    if given in (None, made.name):
        assert (
            FlowTask(config(latents=str(made), posterior=given), CPU).config.posterior == made.name
        )
        return
    with pytest.raises(UserError, match=f"--posterior {given}: .* made with {made.name}; give --p"):
        FlowTask(config(latents=str(made), posterior=given), CPU)


@pytest.mark.parametrize("given", [None, *DEGRADATIONS])
def test_the_degradation_is_that_of_the_latents_or_refused(made: Path, given: str | None) -> None:
    """By its name, for every preset there is."""
    theirs = MADE[made.name]
    if given in (None, theirs):
        task = FlowTask(config(latents=str(made), degradation=given), CPU)
        assert task.config.degradation == theirs
        assert degradation(task.config, task.identity) == degradation_preset(theirs)
        return
    message = f"--degradation {given}: .* made with {theirs}; give --degradation {theirs}"
    with pytest.raises(UserError, match=message):
        FlowTask(config(latents=str(made), degradation=given), CPU)


def test_the_seed_of_the_latents_is_nobodys_business(tmp_path: Path) -> None:
    """Other draws of one distribution are what training is for."""
    entries = identity("mode", "pmrf", seed=7)
    task = FlowTask(config(latents=str(write_latent_set(tmp_path / "a", identity=entries))), CPU)

    assert task.config.loop.seed != 7


def test_a_degradation_without_a_name_is_taken_as_it_is() -> None:
    """A set that another version of the presets made; a preset given over it says what differs."""
    strange = DegradationConfig(kernel_size=13)
    entries = {"posterior": "mode", "degradation": to_dict(strange)}
    taken = resolved(config(latents="x"), entries)

    assert taken.degradation is None
    assert degradation(taken, entries) == strange
    with pytest.raises(UserError, match=r"kernel_size: 13 -> 41.*--degradation None"):
        resolved(config(latents="x", degradation="pmrf"), entries)


def test_a_manifest_that_says_nothing_is_not_guessed() -> None:
    """Pictures need both; without pictures neither is used."""
    with_pictures = config(latents="x", images=("y",))
    with pytest.raises(UserError, match=r"names no posterior.*give --posterior"):
        resolved(with_pictures, {})
    given = replace(with_pictures, posterior="mode", degradation="pmrf")

    assert resolved(given, {}) == given
    assert resolved(config(latents="x"), {}) == config(latents="x")


def test_without_latents_online_pairs_are_the_authors() -> None:
    """A sample of the posterior, and PMRF's degradations; what is given stays."""
    online = resolved(config(draws="online"), {})
    given = config(draws="online", posterior="mode", degradation="pmrf-128")

    assert (online.posterior, online.degradation) == ("sample", "pmrf")
    assert resolved(given, {}) == given


def test_what_was_taken_over_may_be_given_at_a_resume() -> None:
    """The configuration of a run is the resolved one, so saying it aloud changes nothing."""
    entries = identity("mode", "pmrf-128")
    first = resolved(config(latents="x"), entries)
    aloud = resolved(config(latents="x", posterior="mode", degradation="pmrf-128"), entries)
    before = Checkpoint(Path("step"), Path("step"), {"step": 0, "config": to_dict(first)})

    refuse_other_run(aloud, before)
    other = resolved(config(latents="x"), identity("sample", "pmrf-128"))
    with pytest.raises(UsageError, match="posterior: 'mode' -> 'sample'"):
        refuse_other_run(other, before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return networks, images, and latents of them: one draw of each, by the mode."""
    folder = tmp_path_factory.mktemp("world")
    write_networks(folder)
    write_images(folder)
    run(folder, folder / "latents", degradation="pmrf-128", dtype="float32")
    return folder


def test_pictures_start_from_what_the_flow_was_trained_on(world: Path) -> None:
    """Of a held-out image and draw, validation's source is the cached one.

    What separates them is the rounding of the blur, which JPEG can turn into levels: far less than
    the noise of a sampled posterior, from which validation once started.
    """
    task = FlowTask(
        config(
            latents=str(world / "latents"),
            images=(str(world / "images"),),
            vae=str(world / "vae"),
            predictor=str(world / "predictor"),
        ),
        CPU,
    )
    assert task.restorations is not None
    stored, compared = members(world / "latents"), 0
    for batch, count, noise in sweep(task.restorations.samples, LoopConfig(workers=0), CPU):
        pairs = from_images(task.restorer, batch, noise)
        posterior = task.restorer.posterior(task.restorer.posterior_mean((batch.lq + 1) / 2))
        for number, key in enumerate(batch.keys[:count]):
            cached = torch.from_numpy(array(stored[f"{key}.source_0.npy"])).float()
            difference = (pairs.source[number] - cached).square().mean().sqrt()
            assert difference < 0.05 * posterior.std[number].square().mean().sqrt()
            compared += 1

    assert compared == len(task.restorations.samples.sets[0]) > 0
    assert manifest_of(world / "latents")["identity"]["posterior"] == task.config.posterior


def test_a_contradiction_of_pictures_and_latents_is_refused(world: Path) -> None:
    """As it was accepted once: latents of the mode, validation on a sample."""
    files: dict[str, Any] = {"latents": str(world / "latents"), "vae": str(world / "vae")}
    files |= {"images": (str(world / "images"),), "predictor": str(world / "predictor")}
    with pytest.raises(UserError, match=r"--posterior sample.*made with mode"):
        FlowTask(config(**files, posterior="sample"), CPU)
    with pytest.raises(UserError, match=r"--degradation pmrf: .*made with pmrf-128"):
        FlowTask(config(**files, degradation="pmrf"), CPU)


@pytest.mark.parametrize("name", ["vae", "predictor"])
def test_networks_other_than_the_latents_are_refused(
    world: Path, tmp_path: Path, name: str
) -> None:
    """By digest, with the network that differs."""
    other = write_networks(tmp_path, seed=1)
    with pytest.raises(UserError, match=rf"{name}: '\w+' -> '\w+'"):
        FlowTask(config(latents=str(world / "latents"), **{name: str(other / name)}), CPU)


def test_the_command_line_can_leave_a_preset_s_degradation_to_the_latents(
    tmp_path: Path,
) -> None:
    """`--degradation None` takes back what the preset `tiny` says."""
    from infra import cli

    parsed = cli.parse(FlowConfig, PRESETS, ["--preset", "tiny", "--degradation", "None"], "x", "")
    (tmp_path / "config.json").write_bytes(pretty_json(to_dict(parsed)))
    saved = ["--config", str(tmp_path / "config.json")]

    assert parsed.degradation is None
    assert cli.parse(FlowConfig, PRESETS, saved, "x", "").degradation is None
