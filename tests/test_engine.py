"""The engine: ranks and ZeRO stages change where things are, and nothing that is computed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.errors import UsageError
from tests.support.preloaded import Preloaded
from tests.support.training_ranks import BATCH, build, data
from tests.support.training_sets import variables_of_ranks
from trainers.loop.batches import BatchPlan, deepspeed_json, plan_batches
from trainers.loop.config import EngineConfig

STAGES = range(4)
STEPS, HALF = 6, 3
BOUND = 1e-6  # relative, of losses and weights: another order of summation
CLIPPING = {"1": 0.01, "4": 0.0}  # by step
Results = dict[str, dict[str, list[float]]]


def train(ranks: int, jobs: list[dict[str, Any]], folder: Path) -> Results:
    """Run jobs in real processes, joined by gloo."""
    (folder / f"jobs-{ranks}.json").write_text(json.dumps(jobs))
    processes = [
        Preloaded(
            "tests.support.training_ranks",
            [folder / f"jobs-{ranks}.json", folder],
            folder,
            **variables,
        )
        for variables in (variables_of_ranks(ranks) if ranks > 1 else [{}])
    ]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]
    results: Results = json.loads((folder / f"{ranks}.json").read_text())
    return results


def job(name: str, **values: Any) -> dict[str, Any]:
    """Describe a job; its engine's options besides those of the job itself."""
    known = {"start", "stop", "load", "from", "save_at", "poisoned", "without", "clipping", "fused"}
    engine = {key: value for key, value in values.items() if key not in known}
    rest = {key: value for key, value in values.items() if key in known}
    return {"name": name, "stop": STEPS, "engine": engine, **rest}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results, Results]:
    """Two ranks through every stage, then one rank that also goes on where those were."""
    folder = tmp_path_factory.mktemp("runs")
    two = [job(f"two-{stage}", zero_stage=stage, save_at=HALF) for stage in STAGES]
    two += [job(f"half-{stage}", zero_stage=stage, stop=HALF) for stage in STAGES]
    two += [
        job(f"again-{stage}", zero_stage=stage, start=HALF, load=str(folder / f"two-{stage}"))
        for stage in STAGES
    ]
    two += [
        job(f"back-{stage}", zero_stage=stage, start=HALF, **{"from": str(folder / "half-1.0.pt")})
        for stage in STAGES
    ]
    two += [job(f"poisoned-{stage}", zero_stage=stage, poisoned=HALF) for stage in STAGES]
    two += [job(f"without-{stage}", zero_stage=stage, without=HALF) for stage in STAGES]
    two.append(job("poisoned-fused", zero_stage=0, fused=True, poisoned=HALF))
    two.append(job("without-fused", zero_stage=0, fused=True, without=HALF))
    two += [job(f"clipped-{stage}", zero_stage=stage, clipping=CLIPPING) for stage in STAGES]
    results_of_two = train(2, two, folder)
    one = [job(f"one-{stage}", zero_stage=stage) for stage in STAGES]
    one.append(job("accumulated", micro_batch_size=BATCH // 4))
    one.append(job("bf16", precision="bf16"))
    one.append(job("fused", zero_stage=0, fused=True))
    half = str(folder / "half-1.0.pt")
    one.append(job("moved-fused", zero_stage=0, fused=True, start=HALF, **{"from": half}))
    for stage in STAGES:  # what two ranks had at one stage, one rank continues at the next
        before = str(folder / f"half-{stage}.0.pt")
        name = f"moved-{stage}"
        one.append(job(name, zero_stage=(stage + 1) % 4, start=HALF, **{"from": before}))
    results_of_one = train(1, one, folder)
    return folder, results_of_one, results_of_two


def plain() -> list[float]:
    """Train the same model without DeepSpeed."""
    model, optimizer = build()
    losses = []
    for step in range(STEPS):
        x, y = data(step)
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(folder: Path, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
    """Read what a job ended with."""
    state: dict[str, torch.Tensor] = torch.load(folder / f"{name}.{rank}.pt")["weights"]
    return state


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_layout_learns_what_plain_pytorch_learns(
    runs: tuple[Path, Results, Results], stage: int, ranks: int
) -> None:
    """Two ranks of half a batch, or one of it all, at any stage: the loss of a bare loop."""
    result = runs[ranks][f"{('one', 'two')[ranks - 1]}-{stage}"]

    assert result["losses"] == pytest.approx(plain(), rel=BOUND)


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_averaged_over_ranks(runs: tuple[Path, Results, Results], stage: int) -> None:
    """The norm is that of the whole batch, and both ranks end with the same weights to the bit."""
    folder, one, two = runs

    assert two[f"two-{stage}"]["norms"] == pytest.approx(one["one-0"]["norms"], rel=BOUND)
    first, second = (weights(folder, f"two-{stage}", rank) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_accumulation_is_a_larger_batch(runs: tuple[Path, Results, Results]) -> None:
    """Four micro-batches of two give the step of one batch of eight."""
    assert runs[1]["accumulated"]["losses"] == pytest.approx(plain(), rel=BOUND)


def test_bf16_is_close_and_keeps_float32_weights(runs: tuple[Path, Results, Results]) -> None:
    """Autocast rounds the forward pass, not what the optimiser moves."""
    folder, one, _ = runs
    losses = one["bf16"]["losses"]

    assert losses == pytest.approx(plain(), rel=2e-2)
    assert losses != pytest.approx(plain(), rel=BOUND)
    assert {value.dtype for value in weights(folder, "bf16").values()} == {torch.float32}


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_on_the_same_layout_to_the_bit(
    runs: tuple[Path, Results, Results], stage: int
) -> None:
    """Saved by all ranks and loaded by all ranks, the rest of the run is the undisturbed one."""
    folder, _, two = runs

    assert two[f"again-{stage}"]["losses"] == two[f"two-{stage}"]["losses"][HALF:]
    expected = weights(folder, f"two-{stage}")
    assert all(
        torch.equal(value, expected[name])
        for name, value in weights(folder, f"again-{stage}").items()
    )


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_on_another_layout_within_rounding(
    runs: tuple[Path, Results, Results], stage: int
) -> None:
    """Weights and moments fit any number of ranks and any stage; the frozen parameter too."""
    folder, one, two = runs
    expected = two["two-0"]["losses"][HALF:]

    assert one[f"moved-{stage}"]["losses"] == pytest.approx(expected, rel=BOUND)
    assert two[f"back-{stage}"]["losses"] == pytest.approx(expected, rel=BOUND)
    assert torch.equal(weights(folder, f"moved-{stage}")["frozen"], torch.ones(3))


@pytest.mark.parametrize("stage", [*STAGES, "fused"])
def test_a_step_whose_loss_is_not_finite_on_one_rank_is_dropped_whole(
    runs: tuple[Path, Results, Results], stage: int | str
) -> None:
    """Though its gradients would be finite; weights, moments and later losses know nothing.

    A fused update drops it by itself, before the host has looked at the norm.
    """
    folder, _, two = runs
    found, expected = two[f"poisoned-{stage}"], two[f"without-{stage}"]

    assert not math.isfinite(found["norms"].pop(HALF))
    found["losses"].pop(HALF)
    assert found == expected
    for rank in range(2):
        mine, other = (
            torch.load(folder / f"{name}-{stage}.{rank}.pt") for name in ("poisoned", "without")
        )
        for part in ("weights", "moments"):
            assert all(torch.equal(mine[part][name], other[part][name]) for name in mine[part])
        assert mine["moments"]["step"] == STEPS - 1


def test_a_fused_update_learns_what_plain_pytorch_learns(
    runs: tuple[Path, Results, Results],
) -> None:
    """It is the same update, summed in another order."""
    _, one, _ = runs

    assert one["fused"]["losses"] == pytest.approx(plain(), rel=BOUND)
    assert one["moved-fused"]["losses"] == pytest.approx(plain()[HALF:], rel=BOUND)


@pytest.mark.parametrize(("ranks", "given", "stage"), [(1, None, 0), (2, None, 1), (1, 2, 2)])
def test_one_rank_shares_nothing_out(ranks: int, given: Any, stage: int) -> None:
    """Unless a stage is given, it follows from the number of ranks."""
    config = EngineConfig(zero_stage=given)
    plan = plan_batches(config, ranks)

    assert deepspeed_json(config, plan)["zero_optimization"] == {"stage": stage}


@pytest.mark.parametrize("stage", STAGES)
def test_clipping_changes_at_its_step(runs: tuple[Path, Results, Results], stage: int) -> None:
    """The moments are those of a bare loop that clips by other norms from those steps on."""
    moments = torch.load(runs[0] / f"clipped-{stage}.0.pt")["moments"]
    model, optimizer = build()
    limit = 1.0
    for step in range(STEPS):
        x, y = data(step)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        limit = CLIPPING.get(str(step), limit)
        if limit:
            torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for moment in ("exp_avg", "exp_avg_sq"):
                expected = optimizer.state[parameter][moment]
                torch.testing.assert_close(moments[f"{moment}/{name}"], expected)


@pytest.mark.parametrize(
    ("total", "micro", "ranks", "expected"),
    [(64, None, 8, (8, 1)), (64, 4, 8, (4, 2)), (64, 64, 1, (64, 1)), (6, 1, 3, (1, 2))],
)
def test_the_batch_is_shared_out(
    total: int, micro: int | None, ranks: int, expected: tuple[int, int]
) -> None:
    """Micro-batch x ranks x accumulation is the global batch."""
    config = EngineConfig(global_batch_size=total, micro_batch_size=micro)
    plan = plan_batches(config, ranks)

    assert (plan.micro_batch_size, plan.accumulation_steps) == expected
    assert plan.global_batch_size == total


@pytest.mark.parametrize(("total", "micro", "ranks"), [(64, None, 3), (64, 5, 1), (8, 8, 2)])
def test_a_batch_that_does_not_divide_is_refused(total: int, micro: int | None, ranks: int) -> None:
    """No rank gets more than another, and nothing is rounded."""
    with pytest.raises(UsageError, match=f"{total}.*{ranks} ranks"):
        plan_batches(EngineConfig(global_batch_size=total, micro_batch_size=micro), ranks)


PLAN = BatchPlan(ranks=2, micro_batch_size=4, accumulation_steps=8)


def completed(folder: Path, given: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Complete a file of DeepSpeed's."""
    path = folder / "deepspeed.json"
    path.write_text(json.dumps(given))
    return deepspeed_json(EngineConfig(deepspeed_config=str(path), **values), PLAN)


def test_a_deepspeed_file_is_completed(tmp_path: Path) -> None:
    """Absent and "auto" values are filled in; what the trainer has no view on is kept."""
    given = {
        "train_batch_size": "auto",
        "gradient_clipping": 1.0,
        "zero_optimization": {"reduce_bucket_size": 1000},
        "wall_clock_breakdown": True,
    }

    assert completed(tmp_path, given, zero_stage=2, precision="bf16") == {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 8,
        "gradient_clipping": 1.0,
        "zero_optimization": {"reduce_bucket_size": 1000, "stage": 2},
        "torch_autocast": {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "wall_clock_breakdown": True,
        "steps_per_print": 1 << 60,
    }


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"train_batch_size": 32}, "train_batch_size is 32.*64"),
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization\.stage is 3.*1"),
        ({"gradient_clipping": 0.5}, r"gradient_clipping is 0\.5.*1\.0"),
        ({"bf16": {"enabled": True}}, "'bf16'.*--precision bf16"),
        ({"optimizer": {"type": "Adam"}}, "'optimizer'"),
    ],
)
def test_a_contradiction_is_refused_with_both_values(
    tmp_path: Path, given: dict[str, Any], named: str
) -> None:
    """What DeepSpeed's file says is never quietly dropped, nor quietly obeyed."""
    with pytest.raises(UsageError, match=named):
        completed(tmp_path, given)


@pytest.mark.parametrize(
    "values",
    [
        {"precision": "fp16"},
        {"zero_stage": 4},
        {"gradient_clipping": -1.0},
        {"gradient_clipping": math.nan},
        {"global_batch_size": 0},
        {"micro_batch_size": 0},
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any]) -> None:
    """The message names the field."""
    with pytest.raises(ValueError, match=next(iter(values))):
        EngineConfig(**values)
