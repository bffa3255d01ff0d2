"""The dial of a flow: from the posterior mean at strength 0 to all of the flow at strength 1."""

import math

import pytest
import torch
from torch import Tensor, nn

from models.noise import NamedNoise, Purpose
from models.restorer import RestorationRule, Restorer, Solver

NAMES = ["a", "b"]
SHIFT = 0.1


class Constant(nn.Module):
    """A velocity of one value everywhere, which counts its evaluations."""

    evaluations = 0

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Return the same velocity at every point."""
        self.evaluations += 1
        return torch.full_like(x_t, SHIFT)


def mean() -> Tensor:
    """Draw posterior means that are far from 0 and 1, so that nothing is clipped."""
    return 0.4 + 0.2 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def dialled(
    strength: float, *, sigma_s: float = 0.02, steps: int = 10, solver: Solver = "euler"
) -> tuple[Tensor, int]:
    """Restore in pixels; returns the images and the evaluations of the velocity."""
    velocity, noise = Constant(), NamedNoise(0, NAMES)
    chain = Restorer(RestorationRule(space="pixel", sigma_s=sigma_s))
    images = chain.restored(velocity, mean(), noise, steps=steps, solver=solver, strength=strength)
    return images, velocity.evaluations


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("sigma_s", [0.0, 0.02, 0.04])
@pytest.mark.parametrize("strength", [0.1, 0.25, 0.5, 0.75, 1.0])
def test_the_noise_and_the_way_of_the_flow_shrink_with_the_strength(
    strength: float, sigma_s: float, solver: Solver
) -> None:
    """Along a constant velocity v it ends at mean + s (sigma_s eps + v), by either solver."""
    eps = NamedNoise(0, NAMES).normal((3, 8, 8), Purpose.SOURCE_NOISE)
    expected = mean() + strength * (sigma_s * eps + SHIFT)
    found, _ = dialled(strength, sigma_s=sigma_s, solver=solver)

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_at_its_ends_the_dial_is_exact() -> None:
    """Strength 0 is the posterior mean, 1 the restoration without a dial, both to the bit."""
    chain = Restorer(RestorationRule(space="pixel", sigma_s=0.02))
    plain = chain.restored(Constant(), mean(), NamedNoise(0, NAMES), steps=10)

    assert torch.equal(dialled(0)[0], mean())
    assert torch.equal(dialled(1)[0], plain)


@pytest.mark.parametrize(("solver", "each"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("strength", [0, 0.01, 0.3, 0.7, 0.75, 1])
def test_steps_are_taken_in_proportion(strength: float, solver: Solver, each: int) -> None:
    """Rounded up, without a step too many where the product is whole: 0.7 x 10 is 7."""
    _, evaluations = dialled(strength, solver=solver)

    assert evaluations == each * math.ceil(round(10 * strength, 6))


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_a_strength_beyond_the_ends_is_refused(strength: float) -> None:
    """With its value and what the ends mean."""
    with pytest.raises(ValueError, match=r"strength=.*from 0, the posterior mean, to 1"):
        dialled(strength)
