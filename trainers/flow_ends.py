"""The two ends of the flow: from a batch to x_0 before its noise, x_1, and the condition.

Cached pairs bring both as latents. Pairs degraded online pass the frozen networks first:
posterior_mean = predictor(lq), and in latent space E of it and of hq. Pixel flows are in [0, 1].
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datasets.images import DegradedBatch
from datasets.latents import LatentBatch
from infra.errors import UserError
from infra.storage import local_path
from models.checkpoint import CheckpointError, config_from_dict, load_checkpoint, load_strict
from models.frozen import load_posterior_mean, load_vae
from models.looformer import LooUFormer, LooUFormerConfig
from models.rectified_flow import euler
from trainers.draws import Draws, Purpose
from trainers.flow import FlowConfig


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
        identity: of those that latents depend on, as a latent set's manifest names them.

    Raises:
        UserError: weights that are not at hand; says which option.
    """

    def __init__(self, config: FlowConfig, device: torch.device) -> None:
        self.config = config
        self.identity: dict[str, Any] = {}
        self.vae: Any = None
        self.predictor: Any = None
        self.regressor: LooUFormer | None = None
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
                self.regressor = _load_regressor(config.regressor).to(device)
        except (CheckpointError, OSError) as error:
            raise UserError(f"{option}: {error}") from error

    def from_latents(self, batch: LatentBatch, draws: Draws) -> Ends:
        """Take a cached pair; stored latents => float32 on the device."""
        source, target = (
            side.to(draws.device, torch.float32, non_blocking=True)
            for side in (batch.source, batch.target)
        )
        return self._ends(source, target, draws)

    @torch.no_grad()
    def from_images(self, batch: DegradedBatch, draws: Draws) -> Ends:
        """Compute a pair from images in [-1, 1]."""
        hq, start = batch.hq.to(draws.device), self.start(batch.lq.to(draws.device))
        if self.config.space == "pixel":
            return self._ends((start + 1) / 2, (hq + 1) / 2, draws)
        source = self._encode(start, draws, Purpose.SOURCE_POSTERIOR)
        return self._ends(source, self._encode(hq, draws, Purpose.TARGET_POSTERIOR), draws)

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

    def _encode(self, images: Tensor, draws: Draws, purpose: Purpose) -> Tensor:
        posterior = self.vae.encode(images)
        latent: Tensor = posterior.mode()
        if self.config.posterior == "sample":
            latent = posterior.sample(noise=draws.noise(latent.shape[1:], purpose))
        return latent.float()

    @torch.no_grad()
    def _ends(self, source: Tensor, target: Tensor, draws: Draws) -> Ends:
        condition = source if self.config.conditional else None
        if self.config.source == "noise":
            source = draws.noise(source.shape[1:], Purpose.SOURCE_NOISE)
        elif self.regressor is not None:
            source = regress(self.regressor, source)
        return Ends(source, target, condition)

    def noisy(self, source: Tensor, draws: Draws) -> Tensor:
        """Return x_0: the source with its noise, sigma_s eps."""
        if self.config.source == "noise" or not self.config.sigma_s:
            return source
        noise = draws.noise(source.shape[1:], Purpose.SOURCE_NOISE)
        return source + self.config.sigma_s * noise


def regress(network: Any, source: Tensor) -> Tensor:
    """Predict the posterior mean of the target's latent, g(z) = z + net(z, 0), as ELIR's source."""
    latent: Tensor = source + network(source, source.new_zeros(len(source)))
    return latent


@torch.no_grad()
def restore(network: nn.Module, x_0: Tensor, condition: Tensor | None, steps: int) -> Tensor:
    """Solve the flow from x_0 by Euler's method; returns x_1."""
    return euler(lambda x_t, t: network(x_t, t, condition), x_0, steps)


def _load_regressor(where: str) -> LooUFormer:
    folder = local_path(where)
    values, state_dict = load_checkpoint(folder)
    network = LooUFormer(config_from_dict(LooUFormerConfig, values))
    load_strict(network, state_dict, folder)
    return network.eval().requires_grad_(False)
