"""How fast runs converge: known speed-ups are found, and nothing is claimed that was not seen."""

import csv
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient

from infra.errors import UsageError, UserError
from infra.tracking.record import Resume
from infra.tracking.run import Run, start_run
from pipelines.evaluate.convergence.command import main
from pipelines.evaluate.convergence.config import ConvergenceConfig
from pipelines.evaluate.convergence.curves import COSTS, Curve, accumulated, curve
from pipelines.evaluate.convergence.notes import notes
from pipelines.evaluate.convergence.outcome import Outcome, find
from pipelines.evaluate.convergence.records import RunRecord, read_run
from pipelines.evaluate.convergence.speedup import Comparison, compare
from tests.support.stored_runs import EXPERIMENT

pytest_plugins = ["tests.support.tracking_stores"]
EVERY = 100  # steps from one validation to the next
TFLOP = 2.0  # of a step
FEW = settings(max_examples=30)
SETTINGS = {
    "draws": "cached",
    "encoding_flops": 3e15,
    "sampling_steps": 25,
    "engine": {"global_batch_size": 64},
    "ema": {"decays": [0.9999], "warmup": "diffusers"},
    "validation": {
        "set": "a" * 64,
        "images": 500,
        "degradation": "b" * 64,
        "seed": 0,
        "metrics": {"lpips": "alex latent-pmrf/1 " + "c" * 64, "psnr": "rgb latent-pmrf/1 "},
    },
}
"""What a run records that validates as the others do."""


def falling(speed: float, exponent: float = 0.3) -> Callable[[int], float]:
    """Return LPIPS by step, 0.6 (speed step)^-exponent: so many times faster than at speed 1."""
    return lambda step: 0.6 * (speed * step) ** -exponent


def trained(run: Run, steps: range, lpips: Callable[[int], float], seconds: float = 36.0) -> None:
    """Record what a trainer records: a line of speeds for every 10 steps, and validations."""
    for step in steps:
        if step and step % 10 == 0:
            speeds = {"speed/step_seconds": seconds, "speed/tflops_per_second": TFLOP / seconds}
            run.log_metrics({"train/loss": 1 / step, **speeds}, step)
        if step % EVERY == 0:
            untrained = 0.9 + 0 * lpips(EVERY)  # not finite if the others are not
            judged = {"val/lpips": lpips(step) if step else untrained, "val/psnr": 20 + step / 1000}
            run.log_metrics({**judged, "val/psnr_lq": 22.0, "val/loss": 1.0}, step)


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., str]:
    """Record a run in a folder of its own, as a trainer does that is not tracked."""

    def record(
        name: str,
        lpips: Callable[[int], float],
        *,
        params: Mapping[str, Any] = SETTINGS,
        steps: int = 1000,
        **options: Any,
    ) -> str:
        folder = tmp_path / name
        with start_run(
            EXPERIMENT, folder=folder, name=name, params=params, track=False, **options
        ) as run:
            trained(run, range(steps + 1), lpips)
        return str(folder)

    return record


def curve_of(values: Callable[[int], float], steps: "range | list[int]") -> Curve:
    """Return a curve by steps alone."""
    at = np.array([*steps], np.float64)
    costs = dict.fromkeys(COSTS, at)
    return Curve(at, np.array([values(step) for step in steps]), costs, 0)


def compared(baseline: Curve, other: Curve, *, higher_is_better: bool = False) -> Comparison:
    """Compare single seeds by steps."""
    return compare([baseline], [other], "steps", higher_is_better=higher_is_better)


@FEW
@given(
    speed=st.floats(0.25, 12),
    exponent=st.floats(0.05, 1.5),
    every=st.integers(20, 150),
)
def test_a_known_speed_up_lies_in_its_range(speed: float, exponent: float, every: int) -> None:
    """Whatever the power law, at every level the true ratio lies between the two ends."""
    steps = range(every, 3000, every)
    found = compared(
        curve_of(falling(1, exponent), steps), curve_of(falling(speed, exponent), steps)
    )

    assert found.speedups
    for one in found.speedups:
        assert one.low <= one.ratio <= one.high
        assert one.low * (1 - 1e-9) <= speed <= one.high * (1 + 1e-9)


@FEW
@given(slow=st.floats(0.1, 0.6), fast=st.floats(0.1, 0.6), every=st.integers(20, 150))
def test_a_ratio_that_grows_is_followed(slow: float, fast: float, every: int) -> None:
    """Of other exponents the ratio depends on the level, and each level has its own in range."""
    steps = range(every, 3000, every)
    found = compared(curve_of(falling(1, slow), steps), curve_of(falling(1, fast), steps))

    for one in found.speedups:
        true = (0.6 / one.level) ** (1 / slow - 1 / fast)
        assert one.low * (1 - 1e-9) <= true <= one.high * (1 + 1e-9)


def test_on_a_geometric_grid_a_known_speed_up_is_found_exactly() -> None:
    """Equal curves, shifted by a whole number of validations, differ by that ratio everywhere."""
    steps = [2**n for n in range(12)]
    found = compared(curve_of(falling(1), steps), curve_of(falling(8), steps))

    assert len(found.speedups) > 10
    assert [one.ratio for one in found.speedups] == pytest.approx([8.0] * len(found.speedups))
    assert found.headline is not None
    assert found.headline.level == pytest.approx(falling(1)(2**11))
    assert found.headline.baseline == pytest.approx(2**11)


@FEW
@given(speeds=st.lists(st.floats(1, 8), min_size=3, max_size=3), every=st.integers(20, 150))
def test_curves_that_are_straight_in_the_logarithm_are_read_exactly(
    speeds: list[float], every: int
) -> None:
    """What is interpolated is the logarithm of the cost; of seeds the geometric mean counts."""
    steps = range(every, 3000, every)
    slow, *fast = (
        curve_of(lambda step, v=speed: 1 - 0.1 * math.log(v * step), steps)  # type: ignore[misc]
        for speed in (1.0, *speeds)
    )
    found = compare([slow], fast, "steps", higher_is_better=False)

    for one in found.speedups:
        assert one.ratio == pytest.approx(math.prod(speeds) ** (1 / 3))


@FEW
@given(
    values=st.lists(st.lists(st.floats(0.1, 0.9), min_size=6, max_size=6), min_size=2, max_size=2)
)
def test_nothing_is_extrapolated(values: list[list[float]]) -> None:
    """Every level was passed by both runs, after their first validation, at a cost they had."""
    runs = [curve_of(lambda step, v=some: v[step // 10 - 1], range(10, 70, 10)) for some in values]  # type: ignore[misc]
    found = compared(*runs)

    for one in found.speedups:
        for run, spent in zip(runs, (one.baseline, one.other), strict=True):
            assert run.values.min() - 1e-12 <= one.level < run.values[0]
            assert 10 <= spent <= 60
    assert bool(found.speedups) != bool(found.why_none)


def test_the_direction_of_a_metric_changes_nothing_else() -> None:
    """A metric turned round has the same ratios at the levels turned round."""
    steps = range(EVERY, 2000, EVERY)
    slow, fast = falling(1), falling(3)
    lower = compared(curve_of(slow, steps), curve_of(fast, steps))
    higher = compared(
        curve_of(lambda step: -slow(step), steps),
        curve_of(lambda step: -fast(step), steps),
        higher_is_better=True,
    )

    assert [(-one.level, one.ratio, one.low) for one in higher.speedups] == [
        (one.level, one.ratio, one.low) for one in lower.speedups
    ]


def test_a_run_that_gets_worse_again_keeps_what_it_had_reached() -> None:
    """A level counts as reached at the first validation that shows it, whatever comes later."""
    steps = range(EVERY, 1100, EVERY)
    smooth = curve_of(falling(2), steps)
    worse = curve_of(lambda step: falling(2)(step) + (0.5 if step > 500 else 0), steps)
    both = [compared(curve_of(falling(1), steps), one) for one in (smooth, worse)]
    shared = [one for one in both[0].speedups if one.level >= worse.values.min()]
    again = [
        min(both[1].speedups, key=lambda one, level=s.level: abs(one.level - level))  # type: ignore[misc]
        for s in shared
    ]

    assert both[1].headline is not None
    assert both[1].headline.level == pytest.approx(worse.values.min())
    assert all(one.high <= 500 / EVERY * 2 for one in again)


def test_runs_that_never_meet_have_a_reason_and_no_number() -> None:
    """The paper's LPIPS: one run never is as good as the other was at first."""
    steps = range(EVERY, 1000, EVERY)
    found = compared(curve_of(lambda _: 0.5, steps), curve_of(falling(4), steps))

    assert found.headline is None
    assert "no level was reached by all runs" in found.why_none
    assert "0.5" in found.why_none


@pytest.mark.parametrize("is_lowest", [True, False])
def test_a_run_that_began_better_than_the_other_ended_has_a_bound(is_lowest: bool) -> None:
    """It had spent 100 steps at most, and the other would have to spend more than its 900."""
    steps = range(EVERY, 1000, EVERY)
    slow, fast = curve_of(lambda _: 0.5, steps), curve_of(falling(4), steps)
    bound = compared(*((slow, fast) if is_lowest else (fast, slow))).bound

    assert bound is not None
    assert bound.level == falling(4)(EVERY)
    assert bound.is_lowest == is_lowest
    assert bound.ratio == (9 if is_lowest else 1 / 9)


def test_runs_that_cross_have_neither_a_number_nor_a_bound() -> None:
    """One seed that began worse than the others ended leaves nothing to say of its group."""
    steps = range(EVERY, 1000, EVERY)
    slow, fast, failed = (curve_of(lambda _, v=v: v, steps) for v in (0.5, 0.4, 0.6))  # type: ignore[misc]
    found = compare([slow], [fast, failed], "steps", higher_is_better=False)

    assert (found.headline, found.bound) == (None, None)


def test_seeds_widen_the_range_and_are_resampled() -> None:
    """The range holds that of any pair of seeds; three seeds a group are resampled too."""
    steps = range(EVERY, 3000, EVERY)
    slow = [curve_of(falling(speed), steps) for speed in (0.9, 1.0, 1.2)]
    fast = [curve_of(falling(speed), steps) for speed in (3.5, 4.0, 5.0)]
    all_seeds = compare(slow, fast, "steps", higher_is_better=False).headline
    two_seeds = compare(slow[:2], fast, "steps", higher_is_better=False).headline

    assert all_seeds is not None
    assert two_seeds is not None
    assert all_seeds.low <= 3.5 / 1.2
    assert all_seeds.high >= 5.0 / 0.9
    assert all_seeds.sampled is not None
    low, high = all_seeds.sampled
    assert all_seeds.low < low < all_seeds.ratio < high < all_seeds.high
    assert two_seeds.sampled is None


def test_what_was_spent_is_added_up_between_the_lines_of_the_log() -> None:
    """Steps without a line of their own cost what the next line says; beyond it, nobody knows."""
    spent = accumulated({10: 2.0, 40: 1.0}, np.array([0.0, 5, 10, 25, 40, 41]))

    assert spent[:5].tolist() == [0, 10, 20, 35, 50]
    assert math.isnan(spent[5])


def test_a_run_is_charged_for_its_steps_and_for_its_latents(record: Callable[..., str]) -> None:
    """FLOPs are the counted ones of a step times the steps, hours the seconds of the steps."""
    found = curve(read_run(record("run", falling(1))), "lpips")

    assert found.steps.tolist() == [*range(0, 1001, EVERY)]
    assert found.costs["flops"] == pytest.approx(1e12 * TFLOP * found.steps)
    assert found.costs["flops_and_encoding"] == pytest.approx(3e15 + 1e12 * TFLOP * found.steps)
    assert found.costs["hours"] == pytest.approx(found.steps / 100)


def test_a_run_that_encodes_as_it_goes_pays_no_more_for_its_latents(
    record: Callable[..., str],
) -> None:
    """What it encodes is in the count of its steps; nothing was encoded before."""
    online = {name: value for name, value in SETTINGS.items() if name != "encoding_flops"}
    costs = curve(read_run(record("run", falling(1), params=online | {"draws": "online"})), "lpips")
    forgotten = curve(read_run(record("other", falling(1), params=online)), "lpips")

    assert (costs.costs["flops_and_encoding"] == costs.costs["flops"]).all()
    assert np.isnan(forgotten.costs["flops_and_encoding"]).all()


def test_of_a_step_that_was_recorded_twice_the_first_number_counts() -> None:
    """MLflow can neither replace nor delete a point, so the first is what its page shows too."""
    twice = RunRecord("run", "run")
    for value in (20.0, 30.0):
        twice.add("val/psnr", 100, value)

    assert curve(twice, "psnr").values.tolist() == [20.0]


def test_a_resumed_run_has_every_step_once_and_no_pause(
    begin: Callable[..., Run], store: MlflowClient, tmp_path: Path
) -> None:
    """A clock that was turned back leaves no step twice, in the folder or in MLflow.

    Both give the same curve: what was done twice counts once, and the time between not at all. The
    store is left as it was.
    """
    planned = [{**SETTINGS, "loop": {"max_steps": steps}} for steps in (450, 1000)]
    with begin(params=planned[0], name="run") as first:
        trained(first, range(451), falling(1))
    with begin(params=planned[1], name="run", resume=Resume(first.token, 300)) as second:
        trained(second, range(301, 1001), falling(1))
    run_id = second.run_id
    database = tmp_path / "mlflow.db"
    before = database.read_bytes()
    of_folder, of_store = read_run(str(tmp_path / "run")), read_run(str(run_id))
    curves = [curve(one, "lpips") for one in (of_folder, of_store)]

    assert database.read_bytes() == before
    assert of_folder.points == of_store.points
    assert of_folder.params == of_store.params
    assert (
        of_folder.changed["loop.max_steps"] == of_store.changed["loop.max_steps"] == "450 -> 1000"
    )
    assert (of_folder.token, of_folder.name) == (of_store.token, of_store.name)
    for one in curves:
        assert one.steps.tolist() == [*range(0, 1001, EVERY)]
        assert one.costs["hours"][-1] == pytest.approx(10)
    with pytest.raises(UsageError, match="are the same run"):
        find([("", [str(tmp_path / "run")]), ("", [str(run_id)])], [])


@pytest.mark.parametrize("missing", ["0" * 32, "no/such/folder"])
def test_what_is_no_run_is_refused(store: MlflowClient, missing: str) -> None:
    """An id that the store does not know, or a folder without a log, is named."""
    with pytest.raises(UsageError, match=missing):
        read_run(missing)


def test_a_store_that_is_not_there_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong MLFLOW_TRACKING_URI is named, and no empty store appears under it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")

    with pytest.raises(UsageError, match=r"other\.db"):
        read_run("0" * 32)
    assert [*tmp_path.iterdir()] == []


OTHERWISE: dict[str, Any] = {
    "validation.set": "d" * 64,
    "validation.images": 400,
    "validation.degradation": "d" * 64,
    "validation.seed": 1,
    "validation.metrics.lpips": "alex latent-pmrf/1 " + "d" * 64,
    "ema.decays": [0.999],
    "sampling_steps": 10,
}


def changed(name: str, value: object) -> dict[str, Any]:
    """Return the settings with one of them, by its dotted name, otherwise."""
    settings: dict[str, Any] = json.loads(json.dumps(SETTINGS))
    *path, last = name.split(".")
    inner = settings
    for part in path:
        inner = inner[part]
    assert inner[last] != value
    inner[last] = value
    return settings


@pytest.mark.parametrize("name", OTHERWISE)
def test_runs_that_were_validated_otherwise_are_refused(
    record: Callable[..., str], name: str
) -> None:
    """The message names both runs and what differs between them."""
    one = record("one", falling(1))
    other = record("other", falling(2), params=changed(name, OTHERWISE[name]))

    with pytest.raises(UserError, match=rf"one and .*other.*: {re.escape(name)} is") as refusal:
        find([("", [one]), ("", [other])], ["lpips"])
    assert "d" * 13 not in str(refusal.value)


def test_the_weights_of_a_metric_that_is_not_compared_do_not_matter(
    record: Callable[..., str],
) -> None:
    """Two runs with other weights of LPIPS can be compared by their PSNR."""
    weights = OTHERWISE["validation.metrics.lpips"]
    one = record("one", falling(1))
    other = record("other", falling(2), params=changed("validation.metrics.lpips", weights))

    assert find([("", [one]), ("", [other])], ["psnr"]).metrics == ("psnr",)


def test_a_run_whose_validation_changed_on_its_way_is_refused(
    record: Callable[..., str], tmp_path: Path
) -> None:
    """A run resumed on fewer pictures cannot be compared with its own first half."""
    one = record("one", falling(1))
    token = read_run(one).token
    later = changed("validation.images", 40)
    with start_run(
        EXPERIMENT, folder=Path(one), params=later, track=False, resume=Resume(token, 1000)
    ) as run:
        trained(run, range(1001, 1200), falling(1))

    with pytest.raises(UserError, match=r"validation\.images 500 -> 40"):
        find([("", [one])], ["lpips"])


def test_runs_of_an_older_version_are_known_by_their_inputs(record: Callable[..., str]) -> None:
    """Without a record of the set, the PSNR of the LQ pictures has to agree; that is said."""
    old = {name: value for name, value in SETTINGS.items() if name != "validation"}
    one, other = record("one", falling(1), params=old), record("other", falling(2))
    found = find([("", [one]), ("", [other])], ["lpips"])
    log = Path(other) / "log.jsonl"
    log.write_text(log.read_text().replace('"val/psnr_lq": 22.0', '"val/psnr_lq": 22.1'))

    assert any("one: recorded by a version" in note for note in notes(found))
    with pytest.raises(UserError, match=r"val/psnr_lq is 22 and 22\.1"):
        find([("", [one]), ("", [other])], ["lpips"])
    log.write_text(log.read_text().replace(', "val/psnr_lq": 22.1', ""))
    with pytest.raises(UserError, match="nothing that both recorded"):
        find([("", [one]), ("", [other])], ["lpips"])


def test_a_metric_that_a_run_has_not_is_refused_with_those_it_has(
    record: Callable[..., str],
) -> None:
    """So is a metric all of whose values are NaN."""
    one, other = record("one", falling(1)), record("other", lambda step: math.nan)

    with pytest.raises(UserError, match=r"one: its validations have no brisque.*psnr, lpips"):
        find([("", [one])], ["brisque"])
    with pytest.raises(UserError, match="other: its validations have no lpips"):
        find([("", [one]), ("", [other])], ["lpips"])
    assert find([("", [one]), ("", [other])], []).metrics == ("psnr",)


def test_a_validation_without_a_value_is_left_out_and_counted(record: Callable[..., str]) -> None:
    """NaN is no level; the validations around it are the neighbours."""
    one = record("one", falling(1))
    gap = record("gap", lambda step: math.nan if step == 500 else falling(2)(step))
    found = find([("", [one]), ("", [gap])], ["lpips"])
    (_, group) = found.groups

    assert 500 not in group.curves("lpips")[0].steps
    assert any("1 of its validations have no finite lpips" in note for note in notes(found))
    assert _steps(found).headline is not None


def _steps(outcome: Outcome) -> Comparison:
    """Return the comparison by steps."""
    return next(one.found for one in outcome.compared if one.cost == "steps")


def test_a_metric_that_gets_worse_in_training_is_warned_of(record: Callable[..., str]) -> None:
    """A flow's PSNR falls as it learns texture: no speed-up by it is one of learning."""
    one, falls = record("one", falling(1)), record("falls", lambda step: 0.1 + step / 1000)
    found = find([("", [one]), ("", [falls])], ["lpips"])
    (warning,) = (note for note in notes(found) if "never better than at the first" in note)

    assert falls in warning
    assert one not in warning


def test_the_hours_of_a_fork_are_unknown(record: Callable[..., str]) -> None:
    """Its first steps were taken by another run; its steps and FLOPs count from the first on."""
    one = record("one", falling(1))
    fork = record("fork", falling(2), resume=Resume(None, None, {"parent.run": "f" * 32}))
    found = find([("", [one]), ("", [fork])], ["lpips"])
    by_cost = {one.cost: one.found for one in found.compared}

    assert by_cost["hours"].headline is None
    assert "fork" in by_cost["hours"].why_none
    assert by_cost["flops"].headline is not None
    assert np.isnan(found.groups[1].curves("lpips")[0].costs["hours"]).all()
    assert any(f"is a fork of the run {'f' * 32}" in note for note in notes(found))


def test_a_run_that_counted_nothing_has_no_flops() -> None:
    """An old run's operations are not guessed."""
    old = RunRecord("old", "old", params={"draws": "cached"})
    old.add("val/psnr", 100, 20.0)
    old.add("speed/step_seconds", 100, 36.0)

    assert np.isnan(curve(old, "psnr").costs["flops"]).all()
    assert curve(old, "psnr").costs["hours"].tolist() == [1.0]


@pytest.mark.parametrize("text", ["runs/a", "=runs/a", "a=", "a=runs/a,"])
def test_a_group_without_a_name_or_a_run_is_refused(text: str) -> None:
    """The message shows how a group is written."""
    with pytest.raises(ValueError, match="NAME=RUN,RUN"):
        ConvergenceConfig(group=(text,))


def test_the_command_writes_page_json_and_table(
    record: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run four times as fast is told so, by steps and FLOPs, with the curves beside it."""
    slow, *fast = (record(f"run-{n}", falling(speed)) for n, speed in enumerate((1, 4, 4.4)))
    out = tmp_path / "out"
    assert main([slow, "-o", str(out), "--group", f"fast={','.join(fast)}"]) == 0
    told = json.loads((out / "convergence.json").read_text())
    page = (out / "convergence.html").read_text()
    rows = [*csv.DictReader((out / "curves.csv").read_text().splitlines())]
    by_steps = next(
        one for one in told["speedups"] if (one["metric"], one["cost"]) == ("lpips", "steps")
    )

    assert told["baseline"] == "run-0"
    assert by_steps["group"] == "fast"
    assert by_steps["headline"]["low"] < 4 < by_steps["headline"]["high"]
    assert [one["flops_of_a_step"] for one in told["runs"]] == pytest.approx([2e12] * 3)
    assert len(rows) == 3 * 2 * 11  # runs, metrics, validations
    assert float(rows[-1]["hours"]) == pytest.approx(10)
    for cost in COSTS.values():
        assert page.count(f">{cost}</text>") == 2  # below a drawing of each metric
    assert not re.search(r"""(src|href)=["']?http""", page)
    assert "optimizer steps" in capsys.readouterr().out


def test_costs_that_are_the_same_are_drawn_once(record: Callable[..., str], tmp_path: Path) -> None:
    """Of runs that encoded nothing before, FLOPs with encoding are the training's."""
    online = {name: value for name, value in SETTINGS.items() if name != "encoding_flops"}
    runs = [
        record(f"run-{n}", falling(speed), params=online | {"draws": "online"})
        for n, speed in enumerate((1, 4))
    ]
    assert main([*runs, "-o", str(tmp_path / "out")]) == 0

    page = (tmp_path / "out" / "convergence.html").read_text()
    drawn = {cost: page.count(f">{cost}</text>") for cost in COSTS.values()}
    assert drawn == {
        "optimizer steps": 2,
        "training FLOPs": 2,
        "FLOPs with encoding": 0,
        "training hours": 2,
    }


def test_a_command_without_runs_says_how_it_is_used() -> None:
    """So does one that has no output."""
    for arguments in (["-o", "out"], ["runs/a"]):
        with pytest.raises(UsageError, match="RUN RUN"):
            main(arguments)
