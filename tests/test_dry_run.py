"""What a trainer says that a run would cost, against what it does cost."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from tests.support.tiny_tasks import CPU, tiny_task
from tests.support.training_sets import digests, write_image_set
from trainers.loop.batches import plan_batches
from trainers.loop.cost import memory_gb
from trainers.loop.dry_run import SAMPLES, Measured, measured, table
from trainers.loop.memory import LiveBytes, Plain, advice, needs, peak_bytes, samples_of
from trainers.loop.noise import Noise
from trainers.recipes.flow_config import PRESETS

if TYPE_CHECKING:
    from tests.support.trainers_here import Train

pytest_plugins = ["tests.support.trainers_here"]


def cells(said: str) -> Iterator[dict[str, float]]:
    """Read the table of a report, a row for each number of ranks."""
    lines = said.splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("ranks"))
    names = lines[begin].split()
    for line in lines[begin + 1 :]:
        if not line:
            return
        yield dict(zip(names, map(float, line.split()), strict=True))


def test_bytes_that_live_are_those_that_autograd_keeps() -> None:
    """What is freed no longer counts, a view is not counted twice, and weights are told apart."""
    x = torch.ones(250_000, requires_grad=True)
    x.grad = torch.zeros_like(x)
    with LiveBytes([x, x.grad]) as live:
        freed = x * 2
        del freed
        assert (live.now, live.peak) == (0, 1_000_000)
        first = x.square()
        second = first.view(500, 500).square()
        assert live.now == 2_000_000
        second.sum().backward()
        assert live.now == 2_000_000
    del first, second

    assert live.now == 0
    assert 3_000_000 < live.peak <= 6_000_100  # each square needs two products going back
    assert live.given == 0
    frozen = nn.Linear(100, 100, bias=False)
    with LiveBytes([]) as live:
        frozen(torch.ones(1, 100))
    assert live.given == 40_000


@pytest.mark.parametrize("program", ["flow", "vae", "predictor"])
def test_every_trainer_says_what_it_costs_and_writes_nothing(
    command: list[str | Path], train: "Train", tmp_path: Path, program: str
) -> None:
    """Parameters, FLOPs in all, memory by number of ranks, hours, files; not even a folder."""
    images = write_image_set(tmp_path / "images", size=32)
    tiny = ["--preset", "tiny", "--model", "tiny", "--global-batch-size", "4", "--workers", "0"]
    commands = {
        "flow": command,
        "vae": ["trainers.vae", *tiny, "--crop", "16", "--data", images],
        "predictor": ["trainers.predictor", *tiny, "--images", images],
    }
    cached = ["--cache", tmp_path / "cache", "--max-steps", "1000"]
    ended = train([*commands[program], *cached, "--dry-run"], tmp_path / "run")
    assert ended.code == 0, ended.said
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()

    per_step, in_all = map(float, re.findall(r"([\d.e+-]+) TFLOP (?:per step|in all)", ended.said))
    assert in_all == pytest.approx(1000 * per_step, rel=1e-3)
    rows = list(cells(ended.said))
    assert [row["ranks"] for row in rows] == [1, 2, 4]
    assert [row["micro-batch"] for row in rows] == [4, 2, 1]
    for row in rows:
        parts = ("weights", "gradients", "moments", "averages", "frozen", "activations")
        assert row["total"] == pytest.approx(sum(row[part] for part in parts), rel=0.02)
        assert row["activations"] > 0
        assert row["hours"] == pytest.approx(rows[0]["hours"] / row["ranks"], rel=0.01)
    assert rows[0]["activations"] > 2 * rows[2]["activations"]
    assert "It would write to" in ended.said
    assert "It would go on" not in ended.said


@pytest.mark.parametrize(
    ("program", "is_recomputed"),
    [
        ("flow", True),
        pytest.param("vae", False, marks=pytest.mark.slow),
        pytest.param("flow", False, marks=pytest.mark.slow),
        pytest.param("vae", True, marks=pytest.mark.slow),
        pytest.param("predictor", False, marks=pytest.mark.slow),
        pytest.param("predictor", True, marks=pytest.mark.slow),
    ],
)
def test_two_small_counts_tell_what_a_larger_step_needs(
    tmp_path: Path, program: str, is_recomputed: bool
) -> None:
    """Six real samples are within 3 % of what two and four samples of shapes alone tell.

    With activation checkpointing they need less.
    """
    task = tiny_task(program, tmp_path, is_recomputed=is_recomputed)
    found = measured(task, task.config, CPU)
    plain, _ = peak_bytes(tiny_task(program, tmp_path), task.config, CPU, SAMPLES[1])
    noise = Noise(seed=0, step=0, positions=range(6), total=6, device=CPU)
    batch, weights = samples_of(task, 6), list(task.trained.parameters())
    for value in weights:
        value.grad = torch.zeros_like(value)
    with LiveBytes([*weights, *(one.grad for one in weights if one.grad is not None)]) as live:
        runner = Plain(task.trained, task.config.engine, CPU)
        task.losses(runner, batch, noise)["loss"].backward()

    told = 1e9 * found.activations_gb(6) + found.frozen
    assert told == pytest.approx(live.peak + live.given, rel=0.03)
    assert (found.peaks[1] < plain) == is_recomputed


def test_what_does_not_fit_is_told_with_what_does(tmp_path: Path) -> None:
    """Options are proposed whose need, counted as they would have it, is below nine tenths."""
    task, recomputed = (tiny_task("vae", tmp_path, is_recomputed=one) for one in (False, True))
    plan = plan_batches(task.config.engine, 1)
    least, most = (needs(task, task.config, plan, CPU, samples).total for samples in (1, 8))
    expected = needs(recomputed, recomputed.config, plan, CPU, 8).total
    room = 1.01 * expected / 0.9
    said = advice(task, task.config, plan, CPU, room)
    found = re.search(
        r"does not fit: give --micro-batch-size (\d) \((\S+) GB\), .*, or "
        r"--activation-checkpointing \((\S+) GB\)",
        said,
    )
    assert found, said
    smaller = int(found[1])
    assert least < float(found[2]) < 0.9 * room
    assert needs(task, task.config, plan, CPU, 2 * smaller).total > 0.9 * room
    assert float(found[3]) == pytest.approx(expected, rel=1e-2)

    assert "fit" not in advice(task, task.config, plan, CPU, most / 0.8)


def test_a_run_that_is_there_is_looked_at_and_left_alone(
    command: list[str | Path], train: "Train", eight: Path
) -> None:
    """What is left of it is counted from its newest checkpoint."""
    before = digests(eight)
    ended = train([*command, "--max-steps", "12", "--dry-run"], eight)

    assert "for steps 8 to 12" in ended.said
    assert f"It would go on from {eight}/checkpoints/step-00000008" in ended.said
    assert digests(eight) == before


def test_the_checkpoint_is_as_large_as_told(
    command: list[str | Path], train: "Train", finished: Path, tmp_path: Path
) -> None:
    """Within 15 % for a network so small that its tensors' names count."""
    ended = train([*command, "--dry-run"], tmp_path / "run")
    (told,) = re.findall(r"checkpoints of about ([\d.e-]+) GB", ended.said)
    folder = finished / "checkpoints" / "step-00000008"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    assert float(told) * 1e9 == pytest.approx(size, rel=0.15)


def test_zero_shares_out_what_its_stage_says() -> None:
    """The moments from stage 1 on, the gradients from 2, the weights from 3; averages never."""
    whole = {"weights": 0.4, "gradients": 0.4, "moments": 0.8, "averages": 0.8}
    for stage, shared in enumerate([[], ["moments"], ["moments", "gradients"], [*whole][:3]]):
        expected = {name: gb / (8 if name in shared else 1) for name, gb in whole.items()}
        assert memory_gb(10**8, 8, stage, 1) == pytest.approx(expected)


def test_accumulation_needs_the_memory_of_a_micro_batch_only() -> None:
    """Activations grow by sample from what any pass needs."""
    found = Measured(peaks=(50, 90), frozen=0, samples=2, seconds=1.0)
    config = PRESETS["latent-pmrf"]
    small = replace(config, engine=replace(config.engine, micro_batch_size=4))
    lines = list(table(small, 10**9, replace(found, peaks=(5 * 10**9, 9 * 10**9)), 64.0))

    assert found.activations_gb(4) == pytest.approx(90e-9)
    assert [line.split()[:2] for line in lines[1:]] == [
        [str(ranks), "4"] for ranks in (1, 2, 4, 8, 16)
    ]
    assert {line.split()[-3] for line in lines[1:]} == {"9"}
    assert [float(line.split()[-1]) for line in lines[1:]] == [64, 32, 16, 8, 4]
