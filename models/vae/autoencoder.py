"""The contract of every autoencoder here: what encode returns, and what it refuses.

Shapes: images [B, 3, H, W] in [-1, 1]; latents [B, C, h, w] with h = H / f, w = W / f for the
autoencoder's downsample factor f (8 in the paper) and C latent channels.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)  # of the authors and of diffusers: keeps exp(logvar) inside float32


class Posterior(NamedTuple):
    """The encoder's Gaussian over latents, q(z | x) = N(mean, exp(logvar)), diagonal.

    A tuple, because DeepSpeed and DDP look for the tensors of a forward pass in tuples. Both
    fields are [B, C, h, w].
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> "Posterior":
        """Split moments [B, 2C, h, w] into mean and log-variance, the latter clamped."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    @property
    def std(self) -> Tensor:
        """Standard deviation, [B, C, h, w]."""
        return torch.exp(0.5 * self.logvar)

    def mode(self) -> Tensor:
        """Return the most probable latent, which is the mean."""
        return self.mean

    def sample(
        self, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Draw z = mean + std * noise.

        Args:
            generator: draws the noise in float32 on its own device, so that a seed gives the same
                latent up to rounding wherever and in whatever precision the encoder runs.
            noise: the standard normal noise itself, [B, C, h, w].

        Raises:
            ValueError: unless exactly one source of noise is given; there is no global one.
        """
        if (generator is None) == (noise is None):
            raise ValueError("a sample needs its noise from `generator` or `noise`: give just one")
        if generator is not None:
            noise = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        assert noise is not None
        return self.mean + self.std * noise.to(self.mean)

    def kl(self) -> Tensor:
        """Return KL(q || N(0, 1)) in nats, [B]: summed over all latent dimensions, in float32.

        The sum is the authors' reduction; against a pixel loss that is a mean, it makes their
        weight of 1e-6 stronger than latent diffusion's.
        """
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3))


class Autoencoder(Protocol):
    """What Sim-VAE and the public autoencoders have in common."""

    @property
    def downsample_factor(self) -> int:
        """Pixels per latent cell along one axis."""

    @property
    def latent_channels(self) -> int:
        """Channels C of the latent."""

    def encode(self, images: Tensor) -> Posterior:
        """Turn images [B, 3, H, W] in [-1, 1] into a posterior over latents [B, C, h, w]."""

    def decode(self, latent: Tensor) -> Tensor:
        """Turn latents [B, C, h, w] into images [B, 3, H, W], about [-1, 1], not clamped."""


def check_images(images: Tensor, factor: int) -> None:
    """Refuse images that an encoder cannot take; looks at the shape only, so it costs nothing.

    Raises:
        TypeError: not floating point.
        ValueError: not [B, 3, H, W], or a side that ``factor`` does not divide.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {list(images.shape)}; expected [B, 3, H, W] in RGB")
    if not images.is_floating_point():
        raise TypeError(f"images are {images.dtype}; expected floats in [-1, 1], as x / 127.5 - 1")
    height, width = images.shape[2:]
    if height % factor or width % factor or not height or not width:
        raise ValueError(
            f"images are {height} x {width}; both sides must be positive multiples of {factor}: "
            "pad before encoding and crop after decoding"
        )


def check_latent(latent: Tensor, channels: int) -> None:
    """Refuse latents that a decoder cannot take; looks at the shape only.

    Raises:
        ValueError: not [B, C, h, w] with C = ``channels``.
    """
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise ValueError(
            f"latents have shape {list(latent.shape)}; expected [B, {channels}, h, w]: "
            "decode with the autoencoder that encoded"
        )
