"""What the trainer adds to training: `python -m tests.benchmarks.train [ranks]`.

Writes ``results/train.json``, or with ``ranks`` the scaling from 1 to 2 to ``train_ranks.json``.
Set OMP_NUM_THREADS=1 first. Everything is float32 on a CPU; a step on a GPU is shorter, so that
fixed costs weigh more there: these ratios are no promise for it.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datasets.reading.order import Layout
from models.rectified_flow import flow_matching_loss
from models.velocity import looformer
from tests.benchmarks.harness import RUNS, paired, save
from tests.support.training_sets import write_files, write_latent_set
from trainers.loop.batches import plan_batches
from trainers.loop.config import EngineConfig
from trainers.loop.engine import Engine, join, leave
from trainers.loop.noise import Noise
from trainers.recipes import flow_config
from trainers.recipes.flow import FlowTask

BATCH, SIDE, STEPS = 4, 16, 4
MODEL = dataclasses.replace(
    looformer.PRESETS["tiny"], widths=(64, 128), depths=(2, 2), mapping_width=128
)
CPU = torch.device("cpu")


def main() -> None:
    """Measure what was asked for: by default what one process can tell."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["ranks"]:  # only on a machine with nothing else to do
        save("train_ranks", two_ranks_over_one(), "torch", "deepspeed")
        return
    join()
    measured = {
        "engine_over_plain_loop": {str(stage): engine_over_plain(stage) for stage in (0, 1, 2)},
        "cached_over_online": cached_over_online(),
    }
    leave()
    save("train", measured, "torch", "deepspeed")


def build() -> tuple[nn.Module, torch.optim.AdamW]:
    """Build the model of the step benchmark, and its optimiser."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = looformer.LooUFormer(MODEL)
    trained = [value for value in model.parameters() if value.requires_grad]
    return model, torch.optim.AdamW(trained, lr=1e-4)


def engine_over_plain(stage: int) -> dict[str, float]:
    """Time steps through the engine over those of a bare loop: same model, clipping, optimiser."""
    config = EngineConfig(global_batch_size=BATCH, zero_stage=stage)
    engine = Engine(*build(), config, plan_batches(config, 1))
    model, optimizer = build()
    x_0, x_1 = torch.randn(2, BATCH, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 1, BATCH)

    def ours() -> None:
        for _ in range(STEPS):
            engine.backward(flow_matching_loss(engine(x_0, t), x_0, x_1))
            engine.step(1e-4)

    def theirs() -> None:
        for _ in range(STEPS):
            loss = flow_matching_loss(model(x_0, t), x_0, x_1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return paired(ours, theirs, runs=7, clock=time.process_time)


def cached_over_online() -> dict[str, Any]:
    """Count steps per second on cached latents over those that degrade and encode as they go.

    The published networks would take minutes a step here, so they are the tiny ones; beside the
    ratio measured stands the one that the floating-point operations of these networks predict.
    """
    with tempfile.TemporaryDirectory() as name:
        files = write_files(Path(name), size=256)
        shared = {"vae": files.vae, "predictor": files.predictor}
        cached = {**shared, "latents": files.latents, "draws": "cached"}
        online = {**shared, "images": (files.images,), "draws": "online"}
        sides = [stepper(values) for values in (cached, online)]
        result = paired(sides[1][0], sides[0][0], clock=time.process_time)
    costs = [task.flops_per_sample() for _, task in sides]
    return {**result, "predicted_by_flops": costs[1] / costs[0]}


def stepper(values: dict[str, Any]) -> tuple[Callable[[], None], FlowTask]:
    """Return what takes a step of a flow, its data included."""
    base = dataclasses.replace(flow_config.PRESETS["tiny"], model="tiny")
    loop = dataclasses.replace(base.loop, workers=0)
    task = FlowTask(dataclasses.replace(base, loop=loop, **values), CPU)
    config = EngineConfig(global_batch_size=BATCH)
    trained = [value for value in task.network.parameters() if value.requires_grad]
    plan = plan_batches(config, 1)
    engine = Engine(task.trained, torch.optim.AdamW(trained), config, plan)
    batches: Iterator[Any] = iter(task.loader(Layout(micro_batch=BATCH), None))

    def step() -> None:
        batch, _ = next(batches)
        draws = Noise(seed=0, step=0, positions=range(BATCH), total=BATCH, device=CPU)
        engine.backward(task.losses(engine, batch, draws)["loss"])
        engine.step(1e-4)

    return step, task


def two_ranks_over_one() -> dict[str, Any]:
    """Count samples per second of the program on two ranks over one, and its wait for data."""
    with tempfile.TemporaryDirectory() as name:
        latents = write_latent_set(Path(name) / "latents", side=SIDE, train=64)
        rounds = [
            [measured_run(ranks, latents, Path(name) / f"{ranks}-{run}") for ranks in (1, 2)]
            for run in range(RUNS)
        ]
    one, two = zip(*rounds, strict=True)
    speeds = [statistics.median(run["speed/samples_per_second"] for run in r) for r in (one, two)]
    return {
        "samples_per_second": speeds,
        "ratio": speeds[1] / speeds[0],
        "data_share_one_rank": statistics.median(run["speed/data_share"] for run in one),
    }


def measured_run(ranks: int, latents: Path, output: Path) -> dict[str, float]:
    """Run the trainer on 16 samples a rank; returns the last line of its log with speeds."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    options = ["--preset", "tiny", "--model", "tiny", "--max-steps", "40", "--log-every", "20"]
    batch = ["--global-batch-size", str(16 * ranks), "--workers", "1", "--no-track"]
    subprocess.run(
        [
            *(sys.executable, "-m", *launcher, "trainers.flow", *options, *batch),
            *("--latents", str(latents), "--output", str(output)),
        ],
        check=True,
        capture_output=True,
    )
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    result: dict[str, float] = [line for line in lines if "speed/data_share" in line][-1]
    return result


if __name__ == "__main__":
    main()
