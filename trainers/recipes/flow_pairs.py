"""The two ends of the flow: from a batch to x_0 before its noise, x_1, and the condition.

Cached pairs bring both as latents. Pairs degraded online pass the frozen networks first:
posterior_mean = predictor(lq), and in latent space E of it and of hq. Pixel flows are in [0, 1].
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datasets.reading.images import DegradedBatch
from datasets.reading.latents import LatentBatch, check_belongs
from infra.errors import UserError
from infra.storage import local_path
from models.checkpoint import CheckpointError
from models.frozen import load_posterior_mean, load_regressor, load_vae
from models.rectified_flow import euler, regress
from models.velocity.looformer import LooUFormer
from trainers.loop.noise import Noise, Purpose
from trainers.recipes.flow_config import FlowConfig

SOURCES_TAKEN = {"lq": ("lq",), "regressed": ("posterior_mean", "regressed")}


class Ends(NamedTuple):
    """A batch of the flow; all float32 [B, C, h, w]."""

    source: Tensor
    """x_0 before its noise; of the source ``noise``, that noise."""
    target: Tensor
    """x_1."""
    condition: Tensor | None
    """What a conditional flow sees at every t."""


class Frozen:
    """The networks around the flow, as far as they are needed, on the device.

    Args:
        config: which.
        device: where.

    Attributes:
        identity: of those that latents depend on, as a latent set's manifest names them; a
            regressor's only once `accept` saw latents that depend on it.
        regressor_weights: digest of the regressor's, if there is one.

    Raises:
        UserError: weights that are not at hand; says which option.
    """

    def __init__(self, config: FlowConfig, device: torch.device) -> None:
        self.config = config
        self.identity: dict[str, Any] = {}
        self.vae: Any = None
        self.predictor: Any = None
        self.regressor: LooUFormer | None = None
        self.regressor_weights: str | None = None
        self._stored = ""
        option = ""
        try:
            if config.vae and config.space == "latent":
                option = f"--vae {config.vae}"
                vae, who = load_vae(config.vae)
                self.vae, self.identity["vae"] = vae.to(device), who.weights
            if config.predictor:
                option = f"--predictor {config.predictor}"
                predictor, who = load_posterior_mean(config.predictor)
                self.predictor = predictor.to(device)
                if config.source != "lq":
                    self.identity["predictor"] = who.weights
            if config.regressor:
                option = f"--regressor {config.regressor}"
                regressor, who = load_regressor(str(local_path(config.regressor)))
                self.regressor = regressor.to(device)
                self.regressor_weights = who.weights
        except (CheckpointError, OSError) as error:
            raise UserError(f"{option}: {error}") from error

    def accept(self, manifest: Mapping[str, Any]) -> None:
        """Take the pairs of a latent set for this run, or refuse them.

            source of the run    sources of the set that it takes
            posterior_mean       posterior_mean
            noise                posterior_mean: of which only a condition is left
            lq                   lq
            regressed            posterior_mean: --regressor is applied to them as they are loaded;
                                 regressed: as they are, unless conditional, since the condition is
                                 the encoded posterior mean; a --regressor, which pictures need in
                                 validation, must be the one that made them

        Raises:
            UserError: other sources, or sources or targets by other networks; names both.
        """
        made = manifest.get("identity", {}).get("source")
        taken = SOURCES_TAKEN.get(self.config.source, ("posterior_mean",))
        if made == "regressed" and self.regressor_weights is not None:
            self.identity["regressor"] = self.regressor_weights
        expected = made if made in taken else taken[0]
        check_belongs(dict(manifest), source=expected, **self.identity)
        if made == "regressed" and self.config.conditional:
            raise UserError(
                "--latents: their sources are regressed, and a conditional flow is shown what a "
                "regressor regresses, E(posterior mean): give the latents of --source "
                "posterior_mean and --regressor"
            )
        if self.config.source == "regressed" and made != "regressed" and self.regressor is None:
            raise UserError(
                "--latents: their sources are posterior means; give --regressor, which makes "
                "regressed ones of them, or latents of pipelines.encode --source regressed"
            )
        self._stored = made or ""

    def from_latents(self, batch: LatentBatch, noise: Noise) -> Ends:
        """Take a cached pair of what `accept` took; stored latents => float32 on the device."""
        source, target = (
            side.to(noise.device, torch.float32, non_blocking=True)
            for side in (batch.source, batch.target)
        )
        return self._ends(source, target, noise, regressed=self._stored == "regressed")

    @torch.no_grad()
    def from_images(self, batch: DegradedBatch, noise: Noise) -> Ends:
        """Compute a pair from images in [-1, 1]."""
        hq, start = batch.hq.to(noise.device), self.start(batch.lq.to(noise.device))
        if self.config.space == "pixel":
            return self._ends((start + 1) / 2, (hq + 1) / 2, noise)
        source = self._encode(start, noise, Purpose.SOURCE_POSTERIOR)
        return self._ends(source, self._encode(hq, noise, Purpose.TARGET_POSTERIOR), noise)

    @torch.no_grad()
    def start(self, lq: Tensor) -> Tensor:
        """Return what the flow starts from as an image: the posterior mean, or LQ; in [-1, 1]."""
        if self.predictor is None or self.config.source == "lq":
            return lq
        lq = ((lq + 1) / 2).clamp(0, 1)  # a multiple of 1/255, but for the last bit
        mean: Tensor = self.predictor.posterior_mean(lq)
        return mean.clamp(0, 1) * 2 - 1

    def image(self, x: Tensor) -> Tensor:
        """Turn a point of the flow's space into images in [-1, 1], not clamped."""
        images: Tensor = self.vae.decode(x) if self.config.space == "latent" else x * 2 - 1
        return images

    def _encode(self, images: Tensor, noise: Noise, purpose: Purpose) -> Tensor:
        posterior = self.vae.encode(images)
        latent: Tensor = posterior.mode()
        if self.config.posterior == "sample":
            latent = posterior.sample(noise=noise.normal(latent.shape[1:], purpose))
        return latent.float()

    @torch.no_grad()
    def _ends(
        self, source: Tensor, target: Tensor, noise: Noise, *, regressed: bool = False
    ) -> Ends:
        condition = source if self.config.conditional else None
        if self.config.source == "noise":
            source = noise.normal(source.shape[1:], Purpose.SOURCE_NOISE)
        elif self.regressor is not None and not regressed:
            source = regress(self.regressor, source)
        return Ends(source, target, condition)

    def noisy(self, source: Tensor, noise: Noise) -> Tensor:
        """Return x_0: the source with its noise, sigma_s eps."""
        if self.config.source == "noise" or not self.config.sigma_s:
            return source
        return source + self.config.sigma_s * noise.normal(source.shape[1:], Purpose.SOURCE_NOISE)


@torch.no_grad()
def restore(network: nn.Module, x_0: Tensor, condition: Tensor | None, steps: int) -> Tensor:
    """Solve the flow from x_0 by Euler's method; returns x_1."""
    return euler(lambda x_t, t: network(x_t, t, condition), x_0, steps)
