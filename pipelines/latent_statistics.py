"""What is said of a set's latents channel by channel, from sums that add up over shards."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from datasets.latent_format import NPY_HEADER, LatentFormat

Channels = npt.NDArray[np.float64]
SUMS = ("total", "square", "variance", "rounding")


class ChannelSums:
    """Sums over latents, in float64, for each of C channels.

    Args:
        channels: C.

    Attributes:
        count: values in a channel so far.
        total: of the values.
        square: of their squares.
        variance: of the posterior's variance, a value each.
        rounding: of the squared errors of storing.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.total, self.square, self.variance, self.rounding = np.zeros((4, channels))

    def add(self, part: Mapping[str, Any]) -> None:
        """Add what `latent_sums` or `to_json` returned."""
        self.count += part["count"]
        for name in SUMS:
            getattr(self, name).__iadd__(np.asarray(part[name]))

    def to_json(self) -> dict[str, Any]:
        """Return the sums as JSON values, exactly."""
        return {"count": self.count, **{name: getattr(self, name).tolist() for name in SUMS}}

    @classmethod
    def joined(cls, parts: Sequence[Mapping[str, Any]], channels: int) -> "ChannelSums":
        """Add up what `to_json` returned, in the order given: floats do not add up in another."""
        sums = cls(channels)
        for part in parts:
            sums.add(part)
        return sums

    @property
    def mean(self) -> Channels:
        """Mean of each channel."""
        return self.total / max(1, self.count)

    @property
    def std(self) -> Channels:
        """Standard deviation of each channel."""
        spread: Channels = self.square / max(1, self.count) - np.square(self.mean)
        return np.sqrt(np.maximum(spread, 0))

    @property
    def sigma(self) -> Channels:
        """Root mean square of the posterior's standard deviation in each channel."""
        return np.sqrt(self.variance / max(1, self.count))

    @property
    def rounding_error(self) -> Channels:
        """Root mean square of the error of storing in each channel."""
        return np.sqrt(self.rounding / max(1, self.count))

    def summary(self) -> dict[str, list[float]]:
        """Return what the manifest says of these latents."""
        names = ("mean", "std", "sigma", "rounding_error")
        return {name: getattr(self, name).tolist() for name in names}


def latent_sums(
    latent: npt.NDArray[np.float32], variance: Channels, stored: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """Return one latent's part of `ChannelSums`.

    Args:
        latent: [C, h, w].
        variance: of the posterior, mean over each channel.
        stored: the latent as it is read again.
    """
    values = latent.astype(np.float64)
    cells = values[0].size
    return {
        "count": cells,
        "total": values.sum((1, 2)),
        "square": np.square(values).sum((1, 2)),
        "variance": variance * cells,
        "rounding": np.square(values - stored).sum((1, 2)),
    }


def latent_values(content: bytes, latent: LatentFormat) -> npt.NDArray[np.float32]:
    """Read the `.npy` member of a latent set as a loader does: float32 [C, h, w]."""
    stored = np.frombuffer(content, latent.dtype, offset=NPY_HEADER).reshape(latent.shape)
    values = stored.astype(np.float32)
    if latent.scale is None or latent.offset is None:
        return values
    scale, offset = (np.array(v, np.float32)[:, None, None] for v in (latent.scale, latent.offset))
    return values * scale + offset
