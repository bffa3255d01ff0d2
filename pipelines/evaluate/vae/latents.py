"""Statistics of the latents of a set of pictures, from sums that units of work add up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from models.vae.autoencoder import Posterior

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LatentSums:
    """Sums over the latents of some pictures, by channel [C] where nothing else is said."""

    pictures: int
    cells: int
    """Values that each channel has in all of them."""
    means: Floats
    """Of the posterior's mean."""
    squares: Floats
    """Of its square."""
    variances: Floats
    """Of the posterior's variance."""
    kl: float
    """Of KL(q || N(0, 1)) in nats, of all pictures."""

    @classmethod
    def of(cls, posterior: Posterior) -> Self:
        """Add up the posteriors of pictures, in float64."""
        mean, variance = posterior.mean.double(), posterior.logvar.double().exp()
        batch, _, height, width = mean.shape
        return cls(
            batch,
            batch * height * width,
            _by_channel(mean),
            _by_channel(mean.square()),
            _by_channel(variance),
            float(posterior.kl().double().sum()),
        )

    def __add__(self, other: "LatentSums") -> "LatentSums":
        return LatentSums(
            self.pictures + other.pictures,
            self.cells + other.cells,
            self.means + other.means,
            self.squares + other.squares,
            self.variances + other.variances,
            self.kl + other.kl,
        )

    def to_json(self) -> list[Any]:
        """Return it as JSON values."""
        by_channel = [x.tolist() for x in (self.means, self.squares, self.variances)]
        return [self.pictures, self.cells, *by_channel, self.kl]

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> Self:
        """Build it from what `to_json` returned."""
        pictures, cells, means, squares, variances, kl = values
        return cls(pictures, cells, np.array(means), np.array(squares), np.array(variances), kl)

    def statistics(self) -> dict[str, Any]:
        """Return mean and deviation of the modes, the encoder's own deviation, and the KL.

        Each deviation is of a channel, about its mean; `std_of_all` and `posterior_std` are root
        mean squares over the channels.
        """
        means, squares = self.means / self.cells, self.squares / self.cells
        variances = np.maximum(squares - means**2, 0.0)
        return {
            "mean": means.tolist(),
            "std": np.sqrt(variances).tolist(),
            "std_of_all": float(np.sqrt(variances.mean())),
            "posterior_std": float(np.sqrt((self.variances / self.cells).mean())),
            "kl_nats": self.kl / self.pictures,
        }


def _by_channel(values: Tensor) -> Floats:
    """Add up [B, C, h, w] over all but the channels."""
    sums: Floats = values.sum((0, 2, 3)).cpu().numpy()
    return sums
