"""Rectified flow from the posterior mean to the image, or between their latents (Sec. 2.1, 3).

An ODE carries x_0, the (noised) posterior mean or its latent, to x_1, the image or its latent:

    d x_t / d t = v_t(x_t),   t from 0 to 1                                           (Eq. 1)

Every function takes the paper's z (latents) as well as its x (images). Times take the generator
that draws them, and a source's noise comes as it is: nothing here is drawn by a global generator.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.transfer import sent
from models.velocity.layers import widen

Velocity = Callable[[Tensor, Tensor], Tensor]
"""v_t(x_t) as a function of x_t [B, ...] and t [B]."""
TimeDistribution = Literal["stratified", "uniform", "logit_normal"]


def interpolate(x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """Return x_t, on the straight line from x_0 to x_1 (Fig. 2); t [B]."""
    t = _per_sample(t, x_0)
    return (1 - t) * x_0 + t * x_1


def velocity_target(x_0: Tensor, x_1: Tensor) -> Tensor:
    """Return the velocity along that line, which v is to predict (Eq. 2); x_0 with its noise."""
    return x_1 - x_0


def flow_matching_loss(velocity: Tensor, x_0: Tensor, x_1: Tensor) -> Tensor:
    """Mean over all elements of the squared error of the velocity (Eq. 3 and 5)."""
    return F.mse_loss(widen(velocity), widen(velocity_target(x_0, x_1)))


def regress(network: Callable[[Tensor, Tensor], Tensor], x_0: Tensor) -> Tensor:
    """Predict the mean of x_1 from x_0 [B, ...] at once: g(x_0) = x_0 + net(x_0, 0).

    It is one Euler step over the whole of [0, 1]; ELIR's source, where x are latents.
    """
    return x_0 + network(x_0, x_0.new_zeros(len(x_0)))


def sample_t(
    batch_size: int,
    generator: np.random.Generator,
    *,
    distribution: TimeDistribution = "stratified",
) -> Tensor:
    """Draw the times of a training batch, float32 [batch_size].

    Stratified: one time from each of ``batch_size`` equal strata of [0, 1], t_i = (i + u_i) / B.
    Each t is uniform, and their mean varies less. Logit-normal: t = sigmoid(N(0, 1)).

    Args:
        batch_size: B, of all ranks together.
        generator: gives u_i, uniform in [0, 1); see `models.noise.keyed_generator`.
        distribution: of t.

    Raises:
        ValueError: an unknown distribution.
    """
    if distribution == "logit_normal":
        return torch.from_numpy(generator.standard_normal(batch_size)).sigmoid().float()
    # In float64: the sum of a stratum and a float32 rounds into the next stratum now and then.
    t = generator.random(batch_size)
    if distribution == "stratified":
        t = (np.arange(batch_size) + t) / batch_size
    elif distribution != "uniform":
        raise ValueError(f"distribution={distribution!r}: choose from {get_args(TimeDistribution)}")
    return torch.from_numpy(t).float()


def add_source_noise(x_0: Tensor, sigma_s: float, eps: Tensor) -> Tensor:
    """Return x_0 + sigma_s eps, eps ~ N(0, 1): a source that fills its space, as the target does.

    The paper is silent; PMRF and the authors' code have sigma_s = 0.1, in training and in use.
    """
    return x_0 + sigma_s * sent(eps, x_0.device).to(x_0.dtype)


@torch.no_grad()
def euler(velocity: Velocity, x_t: Tensor, steps: int = 25, *, start: float = 0.0) -> Tensor:
    """Solve Eq. 1 by Euler's method (Sec. 3.3), of first order.

    Args:
        velocity: evaluated once per step, at the beginning of each of ``steps`` equal parts of the
            time from ``start`` to 1: by default at t = 0, 1/steps, ..., 1 - 1/steps.
        x_t: the point at ``start``, [B, ...]: by default the source x_0.
        steps: number of steps; the paper's 25.
        start: t to begin at, in [0, 1).

    Returns:
        x_1, [B, ...]; like all updates in float32, or in x_t's type where that is wider.

    Raises:
        ValueError: no step, or a start outside [0, 1).
    """
    x_t, h = _begin(x_t, steps, start)
    for i in range(steps):
        x_t = x_t + h * velocity(x_t, _times(x_t, _time(i / steps, start))).to(x_t)
    return x_t


@torch.no_grad()
def heun(velocity: Velocity, x_t: Tensor, steps: int = 13, *, start: float = 0.0) -> Tensor:
    """Solve Eq. 1 by Heun's method, of second order; as `euler`, at two evaluations per step."""
    x_t, h = _begin(x_t, steps, start)
    for i in range(steps):
        v = velocity(x_t, _times(x_t, _time(i / steps, start))).to(x_t)
        ahead = velocity(x_t + h * v, _times(x_t, _time((i + 1) / steps, start))).to(x_t)
        x_t = x_t + h * (v + ahead) / 2
    return x_t


def from_sigma_convention(network: Velocity) -> Velocity:
    """Adapt a network of the authors' convention to the paper's.

    Their time runs the other way, sigma = 1 - t, 1 at the source, and they predict x_0 - x_1 = -v.
    """

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return -network(x_t, 1 - t)

    return velocity


def _begin(x_t: Tensor, steps: int, start: float) -> tuple[Tensor, float]:
    """Return the point to begin at in the precision of the updates, and the step size."""
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1; the paper takes 25")
    if not 0 <= start < 1:
        raise ValueError(f"start={start}: must be at least 0 and below 1, where the flow ends")
    return widen(x_t), (1 - start) / steps


def _time(done: float, start: float) -> float:
    """Return t when the share ``done`` of the time from ``start`` to 1 is over."""
    return start + (1 - start) * done


def _times(x_t: Tensor, t: float) -> Tensor:
    """Return t once per sample, [B]."""
    return torch.full((len(x_t),), t, dtype=x_t.dtype, device=x_t.device)


def _per_sample(t: Tensor, x: Tensor) -> Tensor:
    """Shape t [B] to multiply x [B, ...]."""
    if t.shape != x.shape[:1]:
        raise ValueError(f"t {list(t.shape)}: give one time per sample, [{len(x)}]")
    return t.view(-1, *[1] * (x.ndim - 1))
