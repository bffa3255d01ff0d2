"""Rectified flow: the paper's formulas, the draws, and solvers on fields with known solutions."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.noise import keyed_generator
from models.rectified_flow import (
    add_source_noise,
    euler,
    flow_matching_loss,
    from_sigma_convention,
    heun,
    interpolate,
    sample_t,
    velocity_target,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Draw in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_the_path_runs_from_x_0_to_x_1() -> None:
    """Each sample at its own time, with the target as its derivative."""
    x_0, x_1 = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    x_t = interpolate(x_0, x_1, t)
    assert torch.equal(x_t[0], x_0[0])
    assert torch.equal(x_t[2], x_1[2])
    torch.testing.assert_close(x_t[1], 0.75 * x_0[1] + 0.25 * x_1[1])
    later = interpolate(x_0, x_1, t + 2)
    torch.testing.assert_close((later - x_t) / 2, velocity_target(x_0, x_1))


def test_the_loss_is_a_mean_over_elements_in_float32() -> None:
    """One element of 8 off by 2 costs 1/2; of bfloat16 inputs the mean is in float32."""
    x_0, x_1 = torch.zeros(2, 4), torch.ones(2, 4)
    velocity = torch.ones(2, 4)
    velocity[0, 0] = 3
    assert flow_matching_loss(velocity, x_0, x_1).item() == 0.5
    assert flow_matching_loss(velocity.bfloat16(), x_0, x_1).dtype == torch.float32


def generator(seed: int = 0) -> np.random.Generator:
    """Make a generator of a key."""
    return keyed_generator((seed,))


@settings(max_examples=40)
@given(batch_size=st.integers(1, 300), seed=st.integers(0, 2**63 - 1))
def test_each_stratum_of_the_batch_is_hit_once(batch_size: int, seed: int) -> None:
    """Time i lies in stratum i of as many equal ones as there are times."""
    times = sample_t(batch_size, generator(seed))
    strata = torch.arange(batch_size)

    # float32 rounding may touch the border of a stratum.
    assert ((times * batch_size - strata - 0.5).abs() <= 0.5 + 1e-5 * batch_size).all()
    assert times.shape == (batch_size,)
    assert times.dtype == torch.float32


def test_the_global_generator_is_not_touched() -> None:
    """Times neither consume nor change torch's own random state."""
    before = torch.random.get_rng_state()
    sample_t(4, generator())
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("distribution", ["uniform", "stratified"])
def test_times_are_uniform(distribution: str) -> None:
    """Mean 1/2 and variance 1/12, within 5 standard errors of the plain uniform."""
    t = sample_t(20_000, generator(), distribution=distribution).double()
    assert abs(t.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / 20_000)
    assert abs(t.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / 20_000)


def test_logit_normal_times_have_normal_logits() -> None:
    """Their logits have mean 0 and variance 1, within 5 standard errors."""
    t = sample_t(20_000, generator(), distribution="logit_normal").double()
    assert abs(t.logit().mean()) < 5 / math.sqrt(20_000)
    assert abs(t.logit().var() - 1) < 5 * math.sqrt(2 / 20_000)


def test_an_unknown_distribution_is_refused() -> None:
    """An unknown distribution is named, with those that there are."""
    with pytest.raises(ValueError, match=r"distribution='cosine': choose from \('stratified'"):
        sample_t(4, generator(), distribution="cosine")


def test_source_noise_has_the_stated_size() -> None:
    """Standard deviation sigma_s, no mean, the type of x_0."""
    x_0 = torch.zeros(4, 32, 32, 32)
    eps = torch.from_numpy(generator().standard_normal(x_0.shape))
    noised = add_source_noise(x_0, 0.1, eps)
    assert noised.std().item() == pytest.approx(0.1, rel=0.01)
    assert abs(noised.mean().item()) < 0.002
    assert add_source_noise(x_0.bfloat16(), 0.1, eps).dtype == torch.bfloat16
    assert torch.equal(add_source_noise(x_0, 0.0, eps), x_0)


@settings(max_examples=40)
@given(steps=st.integers(1, 30), seed=st.integers(0, 1000))
def test_any_number_of_steps_is_exact_along_straight_paths(steps: int, seed: int) -> None:
    """Where the velocity is the target, every solver arrives at x_1."""
    x_0, x_1 = draw(2, 3, seed=seed), draw(2, 3, seed=seed + 1)
    for solve in (euler, heun):
        arrived = solve(lambda x_t, t: velocity_target(x_0, x_1), x_0, steps)
        torch.testing.assert_close(arrived, x_1, rtol=0, atol=1e-12)


@settings(max_examples=40)
@given(steps=st.integers(1, 30), seed=st.integers(0, 1000))
def test_linear_fields_are_solved_exactly_to_the_order(steps: int, seed: int) -> None:
    """For v = A x the solution is a power of exp(h A)'s Taylor polynomial, of degree 1 or 2."""
    x_0, A = draw(2, 3, seed=seed), draw(3, 3, seed=seed + 1) / 2
    step = torch.eye(3, dtype=torch.float64) + A / steps
    for solve, matrix in ((euler, step), (heun, step + A @ A / (2 * steps**2))):
        arrived = solve(lambda x_t, t: x_t @ A.T, x_0, steps)
        expected = x_0 @ torch.linalg.matrix_power(matrix, steps).T
        torch.testing.assert_close(arrived, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=40)
@given(steps=st.integers(1, 30), a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_time_is_the_left_end_for_euler_and_both_ends_for_heun(
    steps: int, a: float, b: float
) -> None:
    """For v = a + b t Heun is exact, and Euler is short by b h / 2."""
    x_0 = draw(2, 3)
    exact = x_0 + a + b / 2

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (2,)
        return (a + b * t)[:, None].expand(2, 3)

    torch.testing.assert_close(heun(velocity, x_0, steps), exact, rtol=0, atol=1e-12)
    expected = exact - b / steps / 2
    torch.testing.assert_close(euler(velocity, x_0, steps), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("solve", "order"), [(euler, 1), (heun, 2)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(
    solve: Callable[..., Tensor], order: int
) -> None:
    """On a field that is linear in nothing, v = sin(3 t) x - x^2 / 4."""

    def field(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * t)[:, None] * x_t - x_t**2 / 4

    x_0 = draw(4, 3)
    exact = heun(field, x_0, 4000)
    errors = [(solve(field, x_0, steps) - exact).norm() for steps in (200, 400)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_euler_takes_the_papers_25_times() -> None:
    """By default t = 0, 0.04, ..., 0.96, once each; the authors' sigma = 1, 0.96, ..., 0.04."""
    times: list[float] = []

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        times.append(t[0].item())
        return x_t

    euler(velocity, torch.zeros(1, 2))
    assert times == pytest.approx([0.04 * i for i in range(25)], abs=1e-7)


def test_updates_are_in_float32() -> None:
    """A bfloat16 network and source do not round the state; nothing is kept for a backward pass."""
    x_0 = torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True)
    arrived = euler(lambda x_t, t: torch.full_like(x_t, 2**-9, dtype=torch.bfloat16), x_0)
    assert arrived.dtype == torch.float32
    assert arrived.tolist() == [[pytest.approx(1 + 2**-9, abs=2e-6)] * 2]
    assert not arrived.requires_grad


def test_the_authors_convention_gives_the_same_samples() -> None:
    """Their update z + (sigma' - sigma) v'(z, sigma), sigma from 1 to 0, against ours adapted."""

    def theirs(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.cos(x) * sigma[:, None] - x

    x_0 = draw(2, 3)
    z, sigmas = x_0, torch.linspace(1, 0, 26, dtype=torch.float64)
    for sigma, after in pairwise(sigmas):
        z = z + (after - sigma) * theirs(z, sigma.expand(2))
    ours = euler(from_sigma_convention(theirs), x_0)
    torch.testing.assert_close(ours, z, rtol=0, atol=1e-12)


def test_wrong_shapes_and_steps_are_refused() -> None:
    """One time per sample; at least one step."""
    with pytest.raises(ValueError, match=r"t \[1\]: give one time per sample, \[2\]"):
        interpolate(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1))
    with pytest.raises(ValueError, match="steps=0: must be at least 1"):
        euler(lambda x_t, t: x_t, torch.zeros(2, 3), 0)
