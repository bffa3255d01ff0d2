"""Training the flow: its pairs under every switch, its validation, what it writes and refuses."""

import copy
import dataclasses
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from datasets.reading.latents import LatentPairs
from datasets.reading.memory import Memory
from datasets.reading.order import Order, WeightedSet
from infra.errors import UsageError, UserError
from models.checkpoint import load_checkpoint, read_digest
from models.compilation import blocks
from models.configuration import config_from_dict
from models.flops import counted
from models.noise import Purpose
from models.rectified_flow import regress
from models.velocity import looformer
from tests.conftest import free_port
from tests.support.training_sets import (
    SMOKE,
    Files,
    assert_golden,
    launch,
    log,
    run_trainer,
    same_curve,
    write_files,
    write_latent_set,
)
from trainers import flow
from trainers.loop.config import EngineConfig, LoopConfig
from trainers.loop.cost import encoder_flops
from trainers.loop.memory import Plain, peak_bytes
from trainers.loop.noise import Noise
from trainers.loop.task import Finished
from trainers.recipes.flow import FlowTask
from trainers.recipes.flow_bundle import given_networks
from trainers.recipes.flow_config import PRESETS, DrawsFrom, FlowConfig
from trainers.recipes.flow_pairs import from_images, from_latents

TINY = [*SMOKE, "--workers", "0"]
SHORT = ["--max-steps", "6", "--log-every", "1", "--validate-every", "6", "--save-every", "3"]
FIFTY = ["--max-steps", "50", "--log-every", "1", "--validate-every", "50"]
CPU = torch.device("cpu")
DRAWS: tuple[DrawsFrom, ...] = ("cached", "online")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Images of 32 pixels, latents of 4 x 4."""
    return write_files(tmp_path_factory.mktemp("files"), size=32)


def configured(files: Files, **values: Any) -> FlowConfig:
    """Return the tiny configuration with these fields; every file is given, and few steps."""
    paths = {**asdict(files), "images": (files.images,)}
    if values.get("source") != "regressed":
        del paths["regressor"]
    loop = LoopConfig(workers=0)
    chosen = {"model": "tiny", "sampling_steps": 3, **paths, **values}
    return dataclasses.replace(PRESETS["tiny"], loop=loop, **chosen)


def drawn(config: FlowConfig, count: int = 2) -> tuple[FlowTask, Any, Noise]:
    """Build a task, load its first batch and draw its numbers."""
    task = FlowTask(config, CPU)
    return task, *batch_of(task, count)


def batch_of(task: FlowTask, count: int) -> tuple[Any, Noise]:
    """Load the first batch of a task and draw its numbers."""
    order = Order([WeightedSet(size=7)], digest="x", seed=0)
    batch = task.samples.load(order.at(torch.arange(count).numpy()), Memory("reused"))
    noise = Noise(seed=0, step=3, positions=range(count), total=count, device=CPU)
    return batch, noise


SWITCHES: list[dict[str, Any]] = [
    {},
    {"source": "noise", "conditional": True},
    {"source": "regressed"},
    {"sigma_s": 0.0, "conditional": True, "times": "uniform"},
    {"stage": "regressor"},
    *(
        {"draws": "online", "source": source, "conditional": source == "noise"}
        for source in ("posterior_mean", "regressed", "lq", "noise")
    ),
    *(
        {"draws": "online", "space": "pixel", "source": source, "posterior": "mode"}
        for source in ("posterior_mean", "lq", "noise")
    ),
]


@pytest.fixture(scope="module", params=SWITCHES, ids=str)
def switched(request: pytest.FixtureRequest, files: Files) -> tuple[FlowTask, Any, Noise]:
    """Build a task by some of the switches, and draw a batch and its numbers."""
    return drawn(configured(files, **request.param))


def test_every_switch_gives_a_gradient(switched: tuple[FlowTask, Any, Noise]) -> None:
    """Whatever the paper compares is one configuration of one program."""
    task, batch, noise = switched
    engine: Any = task.network  # the forward pass is all that the losses use of an engine
    losses = task.losses(engine, batch, noise)
    losses["loss"].backward()

    assert losses["loss"].isfinite()
    assert all(p.grad is not None for p in task.network.parameters() if p.requires_grad)


def in_a_step(task: FlowTask) -> int:
    """Count a step of one sample by PyTorch's counter, its backward as twice the network."""
    of_one = torch.empty(1, *task.shape, device="meta")
    inputs = [of_one, torch.empty(1, device="meta"), *[of_one] * task.config.conditional]
    backward = 2 * counted(copy.deepcopy(task.network).to("meta"), *inputs)
    engine: Any = task.network
    with sdpa_kernel(SDPBackend.MATH):  # whose operations the counter knows on a CPU
        return counted(lambda: task.losses(engine, *batch_of(task, 1))) + backward


def test_what_is_counted_is_what_a_step_runs(switched: tuple[FlowTask, Any, Noise]) -> None:
    """Every frozen network that a step applies is in the FLOPs of a sample, and no other one."""
    task, _, _ = switched

    assert task.flops_per_sample() == in_a_step(task)


def test_a_regressor_is_counted_where_a_step_applies_it(files: Files, tmp_path: Path) -> None:
    """Latents that are regressed already pass none, though validation on pictures needs it."""
    identity = json.loads((Path(files.latents) / "manifest.json").read_bytes())["identity"]
    made = {**identity, "source": "regressed", "regressor": read_digest(files.regressor)}
    stored = str(write_latent_set(tmp_path / "regressed", identity=made))
    plain, applied, before = (
        FlowTask(configured(files, **values), CPU)
        for values in ({}, {"source": "regressed"}, {"source": "regressed", "latents": stored})
    )

    assert before.restorer.regressor is not None
    assert before.flops_per_sample() == in_a_step(before) == plain.flops_per_sample()
    assert applied.flops_per_sample() > plain.flops_per_sample()


@pytest.mark.parametrize(
    ("values", "runs"),
    [
        ({}, []),
        ({"source": "regressed"}, ["regressor"]),
        ({"source": "regressed", "draws": "online"}, ["vae", "predictor", "regressor"]),
        ({"source": "lq", "draws": "online"}, ["vae"]),
    ],
    ids=str,  # of lists, because a set has another order in every process
)
def test_the_frozen_networks_that_a_step_runs_are_compiled(
    files: Files, values: dict[str, Any], runs: list[str]
) -> None:
    """A regressor is, whether latents are cached or not; networks of a validation alone are not."""
    engine = EngineConfig(compile=True)  # a block is compiled when it first runs, so none is here
    restorer = FlowTask(configured(files, engine=engine, **values), CPU).restorer
    networks = {name: getattr(restorer, name) for name in ("vae", "predictor", "regressor")}

    assert runs == [
        name
        for name, network in networks.items()
        if network is not None and all(block._compiled_call_impl for block in blocks(network))
    ]


def test_validation_repeats_to_the_bit(switched: tuple[FlowTask, Any, Noise]) -> None:
    """Degradations and noise are fixed, so curves of runs can be laid over each other."""
    task, _, _ = switched
    first, second = (task.validate(task.network).metrics for _ in range(2))

    assert first == second
    assert task.best.removeprefix("-") in first


def test_what_a_validation_depends_on_is_the_same_of_every_flow(
    switched: tuple[FlowTask, Any, Noise], files: Files
) -> None:
    """Flows that are judged on the same pictures record it alike; only cached latents cost more."""
    task, _, _ = switched
    facts = task.facts()

    if task.config.restores:
        reference = FlowTask(configured(files), CPU).facts()
        assert facts["validation"] == reference["validation"]
        assert facts["validation"]["images"] > 0
        assert {"psnr", "brisque"} <= facts["validation"]["metrics"].keys()
    else:
        assert facts == {}
    if task.config.draws == "online":
        assert "encoding_flops" not in facts


def test_the_networks_that_the_pairs_come_from_are_named(
    switched: tuple[FlowTask, Any, Noise],
) -> None:
    """Whether they are at work in the run or were in the making of its latents."""
    task, _, _ = switched
    config = task.config
    depends = {
        "vae": config.space == "latent",
        "predictor": config.source != "lq",
        "regressor": config.source == "regressed",
    }

    assert task.networks().keys() == {name for name, is_part in depends.items() if is_part}
    assert task.networks().items() <= task.digests.items()


def test_encoding_the_latents_is_counted_once_for_the_whole_set(files: Files) -> None:
    """Two encodings of each image, one of each draw after its posterior mean, one of grey targets.

    A run that encodes at every visit pays for a sample a posterior mean and two encodings.
    """
    cached, online = (FlowTask(configured(files, draws=draws), CPU) for draws in DRAWS)
    assert isinstance(cached.samples, LatentPairs)
    totals = {"samples": 5, "pairs": 40, "gray": 2}  # as pipelines.encode counts them
    cached.samples.manifest["totals"] = totals
    visit = online.flops_per_sample() - cached.flops_per_sample()
    encoding = encoder_flops(cached.restorer.vae, (1, 3, 32, 32))
    targets = 2 * totals["samples"] + totals["gray"]

    expected = targets * encoding + totals["pairs"] * (visit - encoding)
    assert cached.facts()["encoding_flops"] == expected > 0


def test_cached_pairs_are_what_is_stored(files: Files) -> None:
    """x_0 is the stored source with sigma_s eps, x_1 the stored target."""
    task, batch, noise = drawn(configured(files))
    pairs = from_latents(task.restorer, batch, noise, is_regressed=False)
    eps = (task.restorer.x_0(pairs.source, noise) - pairs.source) / task.config.sigma_s

    assert torch.equal(pairs.source, batch.source)
    assert torch.equal(pairs.target, batch.target)
    assert pairs.condition is None
    assert eps.std().item() == pytest.approx(1, abs=0.25)


def test_online_pairs_are_encodings_of_the_posterior_mean_and_of_hq(files: Files) -> None:
    """E(predictor(lq)) and E(hq), here by their modes."""
    config = configured(files, draws="online", posterior="mode", conditional=True)
    task, batch, noise = drawn(config)
    pairs = from_images(task.restorer, batch, noise)
    vae, predictor = task.restorer.vae, task.restorer.predictor
    assert vae is not None
    assert predictor is not None
    levels = ((batch.lq + 1) / 2 * 255).round()
    mean = predictor.posterior_mean(levels / 255)

    torch.testing.assert_close(pairs.target, vae.encode(batch.hq).mean)
    torch.testing.assert_close(pairs.source, vae.encode(mean * 2 - 1).mean)
    assert pairs.condition is not None
    assert torch.equal(pairs.condition, pairs.source)


def test_all_networks_compute_in_the_precision_of_the_step(files: Files) -> None:
    """In bf16 VAE, predictor and flow do, in a step and in validation; losses stay float32."""
    engine = EngineConfig(precision="bf16")
    task, batch, noise = drawn(configured(files, draws="online", engine=engine))
    assert task.restorer.vae is not None
    assert task.restorer.predictor is not None
    averaged = copy.deepcopy(task.network)
    found: dict[str, set[torch.dtype]] = {}
    networks = {
        "vae": task.restorer.vae,
        "predictor": task.restorer.predictor,
        "flow": task.network,
        "averaged": averaged,
    }
    for name, network in networks.items():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                seen = found.setdefault(name, set())
                module.register_forward_hook(lambda *made, seen=seen: seen.add(made[-1].dtype))
    loss = task.losses(Plain(task.trained, engine, CPU), batch, noise)["loss"]
    task.validate(averaged)

    assert loss.dtype == torch.float32
    assert found == {name: {torch.bfloat16} for name in networks}
    assert task.restorer.rule.precision == "bfloat16"


def test_the_memory_of_an_online_step_is_counted(files: Files) -> None:
    """Frozen networks are beside the flow, though a predictor asks for the range of its input."""
    online, cached = (
        FlowTask(configured(files, draws=draws), CPU) for draws in ("online", "cached")
    )
    more, fewer = (peak_bytes(task, task.config, CPU, 4) for task in (online, cached))

    assert more[0] > fewer[0]
    assert more[1] > fewer[1]


def test_the_other_sources(files: Files) -> None:
    """LQ itself, its encoding, a regressed latent, noise: each where it is asked for."""
    task, batch, noise = drawn(configured(files, draws="online", space="pixel", source="lq"))
    source = from_images(task.restorer, batch, noise).source
    torch.testing.assert_close(source, (batch.lq + 1) / 2, rtol=0, atol=1e-6)
    task, batch, noise = drawn(
        configured(files, draws="online", source="lq", posterior="mode", predictor="")
    )
    assert task.restorer.vae is not None
    expected = task.restorer.vae.encode(batch.lq).mean
    torch.testing.assert_close(from_images(task.restorer, batch, noise).source, expected)
    task, pairs, noise = drawn(configured(files, source="regressed"))
    assert task.restorer.regressor is not None
    expected = regress(task.restorer.regressor, pairs.source)
    found = from_latents(task.restorer, pairs, noise, is_regressed=False)
    assert torch.equal(found.source, expected)
    assert torch.equal(
        from_latents(task.restorer, pairs, noise, is_regressed=True).source, pairs.source
    )
    task, pairs, noise = drawn(configured(files, source="noise", conditional=True))
    found = from_latents(task.restorer, pairs, noise, is_regressed=False)
    assert found.condition is not None
    assert torch.equal(found.condition, pairs.source)
    assert torch.equal(task.restorer.x_0(found.source, noise), found.source)


class Still(nn.Module):
    """A velocity of zero."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Stand still."""
        return torch.zeros_like(x_t)


def test_a_flow_that_stands_still_restores_its_source(files: Files) -> None:
    """Without noise that is the posterior mean, and the reference's PSNR is the flow's."""
    config = configured(files, draws="online", space="pixel", sigma_s=0.0)
    result = FlowTask(config, CPU).validate(Still())

    assert result.metrics["psnr"] == pytest.approx(result.metrics["psnr_posterior_mean"], abs=1e-3)
    assert result.grid is not None


def test_references_of_a_latent_flow(files: Files) -> None:
    """Next to the restored images stand the posterior mean and the VAE's reconstruction of HQ."""
    task = FlowTask(configured(files), CPU)
    metrics = task.validate(task.network).metrics

    assert {"psnr", "psnr_posterior_mean", "psnr_reconstruction"} <= metrics.keys()
    assert metrics["loss"] == pytest.approx(
        sum(metrics[f"loss_t{t}"] for t in (0.1, 0.3, 0.5, 0.7, 0.9)) / 5
    )


def test_numbers_depend_on_the_position_in_the_global_batch_alone() -> None:
    """Two ranks, or two accumulation steps, draw what one batch noise."""

    def noise(positions: range) -> Noise:
        return Noise(seed=1, step=5, positions=positions, total=8, device=CPU)

    whole = noise(range(8))
    parts = [noise(range(4)), noise(range(4, 8))]
    noise = torch.cat([part.normal((3, 2), Purpose.SOURCE_NOISE) for part in parts])
    times = torch.cat([part.times() for part in parts])

    assert torch.equal(whole.normal((3, 2), Purpose.SOURCE_NOISE), noise)
    assert torch.equal(whole.times(), times)
    assert not torch.equal(noise, whole.normal((3, 2), Purpose.TARGET_POSTERIOR))
    assert torch.equal(times.mul(8).floor(), torch.arange(8.0))  # one time in each stratum


@pytest.fixture(scope="module")
def trained(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on one rank."""
    output = tmp_path_factory.mktemp("trained") / "run"
    run_trainer(["trainers.flow", *TINY, *SHORT, "--latents", files.latents], output)
    return output


def test_fifty_steps_give_the_golden_losses(files: Files, tmp_path: Path) -> None:
    """A change that should not alter training shows the same numbers.

    The order of an epoch is a function of the set's manifest, which here names networks alone.
    """
    identity = json.loads((Path(files.latents) / "manifest.json").read_bytes())["identity"]
    networks = {name: identity[name] for name in ("vae", "predictor")}
    latents = write_latent_set(tmp_path / "latents", identity=networks)
    by_shards = ["tests.support.by_shards", "flow"]
    run_trainer([*by_shards, *TINY, *FIFTY, "--latents", latents], tmp_path / "run")

    assert_golden("flow", log(tmp_path / "run"))


def test_the_finished_network_is_the_average(trained: Path) -> None:
    """Written with its configuration, for those who restore with it."""
    config, weights = load_checkpoint(trained / "network")
    average = load_checkpoint(trained / "checkpoints" / "step-00000006" / "ema-0.99")[1]

    assert config_from_dict(looformer.LooUFormerConfig, config) == looformer.PRESETS["tiny"]
    assert all(torch.equal(weights[name], average[name]) for name in average)


@pytest.mark.slow
def test_deepspeed_as_typed_trains_on_two_ranks_as_on_one(
    files: Files, trained: Path, tmp_path: Path
) -> None:
    """`deepspeed trainers/flow.py` from the root: half a batch each at ZeRO 1, the same curve.

    Not slow: one rank here, two in test_train_resume, and one by deepspeed in test_launchers.
    """
    deepspeed = Path(sys.executable).with_name("deepspeed")
    launcher = [deepspeed, "--num_accelerators", "2", "--master_port", str(free_port())]
    data = ["--latents", files.latents]
    done = launch([*launcher, "trainers/flow.py", *TINY, *SHORT, *data], tmp_path / "run")

    assert "4 = 2 ranks x 2 samples x 1" in done.stdout
    same_curve(log(tmp_path / "run"), log(trained), rel=1e-4)


@pytest.mark.parametrize(
    ("switches", "name", "belongs"),
    [
        ({}, "latent-pmrf-flow", ["predictor", "vae"]),
        ({"source": "regressed"}, "latent-pmrf-flow", ["predictor", "regressor", "vae"]),
        ({"stage": "regressor"}, "latent-pmrf-regressor", ["predictor", "vae"]),
        ({"draws": "online", "space": "pixel", "source": "lq"}, "pmrf-flow", []),
    ],
    ids=str,
)
def test_what_is_registered_is_the_network(
    files: Files, tmp_path: Path, switches: dict[str, Any], name: str, belongs: list[str]
) -> None:
    """Its name tells the kind, its shapes are those it takes, and what it belongs to is named."""
    config = configured(files, **switches)
    loop = dataclasses.replace(config.loop, output=str(tmp_path))
    task = FlowTask(dataclasses.replace(config, loop=loop), CPU)
    model = task.export(task.network, Finished(1, {}, {}))
    output = task.network(*(torch.zeros(1, *shape[1:]) for shape in model.inputs.values()))

    assert (model.name, model.digest) == (name, read_digest(model.folder))
    assert sorted(model.facts["belongs_to"]) == belongs
    assert list(model.outputs.values()) == [(-1, *output.shape[1:])]


@pytest.mark.slow
def test_torchrun_trains_on_two_ranks_as_on_one(
    files: Files, trained: Path, tmp_path: Path
) -> None:
    """Half a batch each, at ZeRO 2 with accumulation: the same curve."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    changes = ["--zero-stage", "2", "--micro-batch-size", "1"]
    program = str(flow.__file__)
    data = ["--latents", files.latents]
    launch([*launcher, program, *TINY, *SHORT, *changes, *data], tmp_path / "run")

    same_curve(log(tmp_path / "run"), log(trained), rel=1e-4)


def test_latents_of_another_vae_are_refused(files: Files, tmp_path: Path) -> None:
    """The message has the beginnings of both digests."""
    other = write_latent_set(tmp_path / "other", identity={"vae": "f" * 64})

    with pytest.raises(UserError, match=r"vae: 'f{12}' -> '[0-9a-f]{12}'"):
        FlowTask(configured(files, latents=str(other)), CPU)


def test_a_network_of_other_channels_is_refused(files: Files) -> None:
    """Before anything is built."""
    with pytest.raises(UserError, match=r"latent-c32 has 32 channels.*4"):
        FlowTask(configured(files, model="latent-c32"), CPU)


def test_a_map_that_the_network_cannot_halve_is_refused(tmp_path: Path) -> None:
    """A resolution that does not fit is a user's mistake, not a defect."""
    latents = write_latent_set(tmp_path / "odd", side=5)
    config = dataclasses.replace(PRESETS["tiny"], model="tiny", latents=str(latents))

    with pytest.raises(UserError, match="5 x 5"):
        FlowTask(config, CPU)


def test_missing_files_are_named() -> None:
    """All at once, for the switches at hand."""
    with pytest.raises(UsageError, match="--images, --vae, --predictor"):
        flow.main(["--preset", "tiny", "--draws", "online", "--output", "x"])
    with pytest.raises(UsageError, match="no --latents: "):
        flow.main(["--preset", "elir-source", "--output", "x"])


@pytest.mark.parametrize(
    "values",
    [
        {"space": "pixel"},
        {"source": "gt"},
        {"sigma_s": -1.0},
        {"sampling_steps": 0},
        {"source": "regressed", "space": "pixel", "draws": "online"},
        {"stage": "regressor", "source": "lq"},
        {"regressor": "runs/regressor/network"},
        {"conditional": True, "stage": "regressor"},
    ],
)
def test_impossible_combinations_are_refused(values: dict[str, Any]) -> None:
    """The message names the field."""
    with pytest.raises(ValueError, match=next(iter(values))):
        FlowConfig(**values)


def test_the_networks_of_a_run_are_named_so_that_they_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NAME before a path stays, and so does "=" inside of one; so do names of a hub."""
    (tmp_path / "lr=0.1").mkdir()
    monkeypatch.chdir(tmp_path)
    config = FlowConfig(
        source="regressed",
        vae="lr=0.1",
        predictor="difface=lr=0.1",
        regressor="team/regressor=2",
    )

    assert given_networks(config) == {
        "vae": f"{tmp_path}/lr=0.1",
        "predictor": f"difface={tmp_path}/lr=0.1",
        "regressor": "team/regressor=2",
    }
