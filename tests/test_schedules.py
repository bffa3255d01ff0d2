"""Learning rates: the anchors of paper and authors, and the shape between them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.schedules import PRESETS, Schedule, learning_rate, preset

SCHEDULES = st.builds(
    Schedule,
    peak=st.floats(1e-6, 1.0),
    warmup_from=st.just(0.0),
    warmup_steps=st.integers(0, 50),
    floor=st.just(0.0),
    cosine_steps=st.integers(1, 200),
)


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("sim-vae-authors", 0, 1e-5),
        ("sim-vae-authors", 250, 5.5e-5),
        ("sim-vae-authors", 499, 9.982e-5),
        ("sim-vae-authors", 500, 1e-4),
        ("sim-vae-authors", 50_000, 8.5776e-5),
        ("sim-vae-authors", 100_000, 5.0889e-5),
        ("sim-vae-authors", 149_999, 1.5775e-5),
        ("sim-vae", 0, 1e-5),
        ("sim-vae", 500, 1e-4),
        ("sim-vae", 50_000, 7.5550e-5),
        ("sim-vae", 100_000, 2.5900e-5),
        ("sim-vae", 149_999, 1.0e-6),
        ("flow", 0, 5e-4),
        ("flow", 399_999, 5e-4),
    ],
)
def test_the_published_schedules_pass_through_their_anchors(
    name: str, step: int, expected: float
) -> None:
    """Both readings of Sim-VAE's cosine, and the flow's constant, give the reference values."""
    assert learning_rate(step, preset(name)) == pytest.approx(expected, rel=5e-5)


def test_the_readings_differ_at_the_end() -> None:
    """The authors' cosine is left unfinished, sixteen times above the paper's floor."""
    ends = [learning_rate(149_999, PRESETS[name]) for name in ("sim-vae-authors", "sim-vae")]

    assert ends[0] / ends[1] == pytest.approx(15.8, abs=0.1)


@settings(max_examples=50)
@given(schedule=SCHEDULES, step=st.integers(0, 400))
def test_rates_rise_then_fall_within_their_bounds(schedule: Schedule, step: int) -> None:
    """A rate lies between floor and peak, rises while warming up and never afterwards."""
    now, then = (learning_rate(at, schedule) for at in (step, step + 1))

    assert 0 <= now <= schedule.peak
    assert now <= then if step < schedule.warmup_steps else now >= then


def test_behind_the_cosine_lies_the_floor() -> None:
    """A run that goes on after the cosine goes on at its floor."""
    schedule = Schedule(peak=1.0, floor=0.1, cosine_steps=10)

    assert [learning_rate(step, schedule) for step in (10, 11, 10**9)] == [0.1] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peak": 0.0}, r"peak\s+Input should be greater than 0"),
        ({"peak": math.nan}, r"peak\s+Input should be a finite number"),
        ({"floor": 2.0}, "from 0 to peak"),
        ({"warmup_from": -1.0}, r"warmup_from\s+Input should be greater"),
        ({"warmup_steps": -1}, r"warmup_steps\s+Input should be greater"),
        ({"cosine_steps": 0}, r"cosine_steps\s+Input should be greater than 0"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(change: dict[str, float], said: str) -> None:
    """The error names the field and its value."""
    with pytest.raises(ValueError, match=said):
        Schedule(**{"peak": 1.0, **change})  # type: ignore[arg-type]  # wrong on purpose


def test_unknown_names_and_negative_steps_are_refused() -> None:
    """The error lists the presets, or says where steps begin."""
    with pytest.raises(ValueError, match="choose one of sim-vae, sim-vae-authors, flow"):
        preset("sim_vae")
    with pytest.raises(ValueError, match="count from 0"):
        learning_rate(-1, PRESETS["flow"])
