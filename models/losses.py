"""The loss of Sim-VAE (paper Sec. 4.2): L = L_recon + lambda_reg L_reg.

L_recon is an L1 distance and a perceptual one, L_reg the KL divergence. The reductions are the
authors': the pixel term is a *mean* over all values, the KL a *sum* over the latent's. With
256 x 256 crops that makes their weight of 1e-6 as strong as 0.2 in latent diffusion, where both
are sums; the paper's "as in [50]" does not hold for the code, and the code is followed.

Every reduction is in float32; VGG itself runs in the caller's precision. Images are [B, 3, H, W] in
[-1, 1], posteriors [B, C, h, w].
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.configuration import STRICT
from models.metrics.backbones import VGG19
from models.ranges import model_to_unit

PERCEPTUAL_LAYERS = {  # Real-ESRGAN's weights
    "conv1_2": 0.1,
    "conv2_2": 0.1,
    "conv3_4": 1.0,
    "conv4_4": 1.0,
    "conv5_4": 1.0,
}


def l1(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Average |reconstruction - images| over all values: a scalar.

    Raises:
        ValueError: the shapes differ; nothing is broadcast.
    """
    if reconstruction.shape != images.shape:
        raise ValueError(
            f"reconstruction {list(reconstruction.shape)} and images {list(images.shape)} must "
            "have one shape: crop both alike"
        )
    difference = reconstruction - images  # of two half maps a half one: no copy in float32
    return difference.abs().sum(dtype=torch.float32) / difference.numel()


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Average KL(N(mean, exp(logvar)) || N(0, 1)) over the batch: a scalar, in nats.

    Per image it is 1/2 sum (mean^2 + sigma^2 - 1 - log sigma^2) over all latent dimensions.

    Args:
        mean: [B, C, h, w].
        logvar: log sigma^2, [B, C, h, w].
    """
    mean, logvar = mean.float(), logvar.float()
    # expm1 keeps what sigma^2 - 1 loses to rounding where sigma is near 1.
    terms = mean.square() + torch.expm1(logvar) - logvar
    return 0.5 * terms.flatten(1).sum(dim=1).mean()


class PerceptualLoss(nn.Module):
    """sum_l w_l mean |phi_l(reconstruction) - phi_l(images)| over layers of a frozen VGG19.

    Gradients flow through the reconstruction alone. Keep it out of the optimiser and of the
    checkpoint: it has nothing to learn.

    Args:
        vgg: the features phi; frozen here.
        layers: the weight w_l of each layer.
    """

    def __init__(self, vgg: VGG19, layers: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.layers = PERCEPTUAL_LAYERS if layers is None else layers
        # As its images are: CUDA copies kernels of another layout at every call.
        self.vgg = vgg.eval().requires_grad_(False)
        self.vgg.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Compare images [B, 3, H, W] in [-1, 1]; returns a scalar."""
        features = self._features(reconstruction)
        with torch.no_grad():
            reference = self._features(images)
        terms = [
            weight * l1(features[name], reference[name]) for name, weight in self.layers.items()
        ]
        return torch.stack(terms).sum()

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = self.vgg(model_to_unit(images), tuple(self.layers))
        return features


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class SimVAELossConfig:
    """Weights of the terms; the defaults are the authors'. Zero switches a term off."""

    l1: NonNegativeFloat = 1.0
    """Of the mean absolute error."""
    perceptual: NonNegativeFloat = 0.05
    """Of the perceptual loss. Real-ESRGAN, whose layer weights these are, has 1."""
    kl: NonNegativeFloat = 1e-6
    """Of the KL divergence, lambda_reg."""


class SimVAELosses(NamedTuple):
    """The weighted sum to minimise, and its terms before weighting, without gradient; scalars."""

    total: Tensor
    l1: Tensor
    perceptual: Tensor
    kl: Tensor


class SimVAELoss(nn.Module):
    """The whole loss.

    Args:
        config: the weights.
        perceptual: the perceptual term; None if its weight is 0.

    Raises:
        ValueError: a perceptual weight without the term.
    """

    def __init__(self, config: SimVAELossConfig, perceptual: PerceptualLoss | None = None) -> None:
        super().__init__()
        if config.perceptual and perceptual is None:
            raise ValueError(
                f"perceptual={config.perceptual} needs `perceptual`, made of "
                "models.metrics.backbones.load_vgg19(); without the weights of VGG19 set "
                "perceptual=0"
            )
        self.config = config
        self.perceptual = perceptual if config.perceptual else None

    def forward(
        self, reconstruction: Tensor, images: Tensor, mean: Tensor, logvar: Tensor
    ) -> SimVAELosses:
        """Weigh the terms.

        Args:
            reconstruction: decoded from a *sample* of the posterior, [B, 3, H, W].
            images: what was encoded, [B, 3, H, W] in [-1, 1].
            mean: of the posterior, [B, C, h, w].
            logvar: of the posterior, [B, C, h, w].
        """
        terms = {"l1": l1(reconstruction, images), "kl": kl(mean, logvar)}
        terms["perceptual"] = (
            terms["l1"].new_zeros(())
            if self.perceptual is None
            else self.perceptual(reconstruction, images)
        )
        weighted = [getattr(self.config, name) * term for name, term in terms.items()]
        total = torch.stack(weighted).sum()
        return SimVAELosses(total, **{name: term.detach() for name, term in terms.items()})
