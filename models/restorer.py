"""From a degraded image to a restored one, a method for every step of the paper (Fig. 2, Sec. 3).

    LQ -> posterior mean     the predictor's estimate
       -> encoding           E of it: the latent; in pixel space the posterior mean itself
       -> source             the encoding, or g of it with a regressor g, or noise alone
       -> x_0                the source with noise, sigma_s eps
       -> x_t                where the flow begins: x_0, or a point between it and the encoding
       -> x_1                the flow's end: the velocity, integrated from there to t = 1    (Eq. 1)
       -> image              D(x_1); in pixel space x_1 itself

How far the flow may go from the posterior mean is its *strength*. At strength 1 it begins at t = 0
with x_0, as in training. At a lower strength s it begins at t = 1 - s, at that point of the line
from x_0 to the encoding, where the noise is s sigma_s eps; so less is invented. At strength 0
nothing is left to integrate, and the image is the posterior mean.

Whoever makes latents, trains a flow on them, validates or restores with it takes these steps, so
that no two of them can differ. Images are float32 [B, 3, H, W] in [0, 1]; a point x of the flow is
a latent [B, C, h, w], or in pixel space an image. Everything is on the device of the networks.
"""

import math
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.configuration import STRICT
from models.noise import BatchNoise, Purpose
from models.predictor.swinir import SwinIR
from models.ranges import model_to_unit, unit_to_model
from models.rectified_flow import Velocity, add_source_noise, euler, heun, interpolate, regress
from models.vae.autoencoder import Posterior
from models.vae.public import PublicVAE
from models.vae.sim_vae import SimVAE
from models.velocity.looformer import LooUFormer

Solver = Literal["euler", "heun"]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Of autocast, by the precision that asks for it."""
ROUNDING = 1e-9  # of a product of steps and strength that is meant to be whole


class _Solve(Protocol):
    """A solver of Eq. 1."""

    def __call__(self, velocity: Velocity, x_t: Tensor, steps: int, *, start: float) -> Tensor:
        """Carry the point at ``start`` to x_1."""


SOLVERS: dict[Solver, _Solve] = {"euler": euler, "heun": heun}


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class RestorationRule:
    """Which way an image takes."""

    space: Literal["latent", "pixel"] = "latent"
    """Where the flow is: latents, or pixels in [0, 1] as in PMRF."""
    source: Literal["posterior_mean", "regressed", "lq", "noise"] = "posterior_mean"
    """x_0 without its noise: (the encoding of) the posterior mean, a regressed latent, (the
    encoding of) LQ, or noise."""
    posterior: Literal["mode", "sample"] = "mode"
    """What an encoding is of the autoencoder's Gaussian: its mode, or a sample."""
    sigma_s: NonNegativeFloat = 0.1
    """Standard deviation of the noise added to the source; ``noise`` is N(0, 1) by itself."""
    conditional: bool = False
    """Whether the velocity sees the encoding at every t."""
    precision: Precision = "float32"
    """Of the autoencoder's encoder: bfloat16 and float16 are autocast. tf32 is a setting of the
    whole process, which is the program's to make."""
    predictor_precision: Precision = "float32"
    """Of the predictor, likewise; where the process computes in tf32, float32 is that."""


def steps_taken(steps: int, strength: float) -> int:
    """Return how many of ``steps`` a flow of this strength takes: their product, rounded up."""
    return math.ceil(steps * strength - ROUNDING)


class Restorer:
    """The networks around the velocity, at work.

    Args:
        rule: which way an image takes.
        vae: the autoencoder of a latent flow, on its device, frozen; None where nothing is encoded
            or decoded. Its weights are laid out channels last, as its images are, because the
            layout chooses the convolutions' kernels, and those the last bits.
        predictor: of the posterior mean; None where LQ is the source, or no condition is needed.
        regressor: g; None unless the source is regressed here.
    """

    def __init__(
        self,
        rule: RestorationRule,
        *,
        vae: SimVAE | PublicVAE | None = None,
        predictor: SwinIR | None = None,
        regressor: LooUFormer | None = None,
    ) -> None:
        self.rule, self.vae, self.predictor, self.regressor = rule, vae, predictor, regressor
        if vae is not None:
            vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs

    def restore(
        self,
        velocity: nn.Module,
        lq: Tensor,
        noise: BatchNoise,
        *,
        steps: int = 25,
        solver: Solver = "euler",
        strength: float = 1.0,
    ) -> Tensor:
        """Restore LQ: all steps, one after the other.

        Args:
            velocity: the trained network, v(x_t, t, condition or None).
            lq: [B, 3, H, W] in [0, 1], of 8 bits.
            noise: `models.noise.NamedNoise` makes the result a function of (seed, name of each).
            steps: of the solver; the paper's 25.
            solver: Euler's method, or Heun's of second order at two evaluations a step.
            strength: how far the flow may go from the posterior mean, in [0, 1].

        Returns:
            Images in [0, 1].

        Raises:
            ValueError: a strength outside [0, 1], or no step.
        """
        mean = self.posterior_mean(lq)
        return self.restored(velocity, mean, noise, steps=steps, solver=solver, strength=strength)

    def restored(
        self,
        velocity: nn.Module,
        posterior_mean: Tensor,
        noise: BatchNoise,
        *,
        steps: int = 25,
        solver: Solver = "euler",
        strength: float = 1.0,
    ) -> Tensor:
        """Restore from the posterior mean on, as `restore`, of which it is the rest.

        At a lower strength fewer steps are taken, each about as long: ``steps`` x ``strength``,
        rounded up.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength}: from 0, the posterior mean, to 1, all of it")
        if strength == 0:
            return posterior_mean
        encoding = self.encode(posterior_mean, noise, Purpose.SOURCE_POSTERIOR)
        x_t = self.x_0(self.source(encoding, noise), noise)
        start = 1 - strength
        if start:
            x_t = interpolate(x_t, encoding, torch.full_like(x_t[:, 0, 0, 0], start))
        taken = steps_taken(steps, strength)
        x_1 = self.solve(velocity, x_t, self.condition(encoding), taken, solver, start=start)
        return self.image(x_1)

    @torch.no_grad()
    def posterior_mean(self, lq: Tensor) -> Tensor:
        """Predict the posterior mean, clipped to [0, 1]; where LQ is the source, that is LQ.

        Raises:
            ValueError: sides that the predictor cannot take.
        """
        if self.predictor is None or self.rule.source == "lq":
            return lq
        with _autocast(lq, self.rule.predictor_precision):
            return self.predictor.posterior_mean(lq.contiguous()).float()

    def encode(self, images: Tensor, noise: BatchNoise, purpose: Purpose) -> Tensor:
        """Return the point of the flow that stands for images; a mode asks for no noise."""
        if self.rule.space == "pixel":
            return images
        return self.latent(self.posterior(images), noise, purpose)

    @torch.no_grad()
    def posterior(self, images: Tensor) -> Posterior:
        """Return q(z | x) of images, in float32."""
        images = unit_to_model(images).contiguous(memory_format=torch.channels_last)
        with _autocast(images, self.rule.precision):
            mean, logvar = self._autoencoder.encode(images)
        return Posterior(mean.float().contiguous(), logvar.float().contiguous())

    def latent(self, posterior: Posterior, noise: BatchNoise, purpose: Purpose) -> Tensor:
        """Take the posterior's mode or a sample, as the rule says; ``purpose`` is the sample's."""
        if self.rule.posterior == "mode":
            return posterior.mode()
        return posterior.sample(noise=noise.normal(posterior.mean.shape[1:], purpose))

    def source(self, encoding: Tensor, noise: BatchNoise) -> Tensor:
        """Return x_0 without its noise; of the source ``noise``, that noise."""
        if self.rule.source == "noise":
            return noise.normal(encoding.shape[1:], Purpose.SOURCE_NOISE).to(encoding)
        return self.regressed(encoding) if self.rule.source == "regressed" else encoding

    @torch.no_grad()
    def regressed(self, encoding: Tensor) -> Tensor:
        """Return g(E(posterior mean)); without a regressor here, the encoding."""
        return encoding if self.regressor is None else regress(self.regressor, encoding)

    def condition(self, encoding: Tensor) -> Tensor | None:
        """Return what the velocity sees at every t, if it sees anything."""
        return encoding if self.rule.conditional else None

    def x_0(self, source: Tensor, noise: BatchNoise) -> Tensor:
        """Return the source with its noise."""
        if self.rule.source == "noise" or not self.rule.sigma_s:
            return source
        eps = noise.normal(source.shape[1:], Purpose.SOURCE_NOISE)
        return add_source_noise(source, self.rule.sigma_s, eps)

    @torch.no_grad()
    def solve(
        self,
        velocity: nn.Module,
        x_t: Tensor,
        condition: Tensor | None,
        steps: int = 25,
        solver: Solver = "euler",
        *,
        start: float = 0.0,
    ) -> Tensor:
        """Carry the point at ``start``, by default x_0, to x_1 along the velocity."""
        return SOLVERS[solver](lambda x, t: velocity(x, t, condition), x_t, steps, start=start)

    @torch.no_grad()
    def image(self, x: Tensor) -> Tensor:
        """Turn a point of the flow into an image, clipped to [0, 1]."""
        if self.rule.space == "pixel":
            return x.clamp(0, 1)
        latent = x.contiguous(memory_format=torch.channels_last)
        return model_to_unit(self._autoencoder.decode(latent)).clamp(0, 1)

    @property
    def _autoencoder(self) -> SimVAE | PublicVAE:
        if self.vae is None:
            raise ValueError("images and latents without an autoencoder: give the vae to Restorer")
        return self.vae


def _autocast(images: Tensor, precision: Precision) -> AbstractContextManager[Any]:
    """Return a context in which networks compute in a precision on the device of images."""
    half = HALVES.get(precision)
    return torch.autocast(images.device.type, half, enabled=half is not None)
