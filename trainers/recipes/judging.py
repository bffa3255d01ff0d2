"""How validation judges: the metrics of pictures, and averages over the samples of all ranks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from infra.copies import at_hand
from infra.distributed import gathered, sums
from infra.errors import UserError
from infra.paths import path_of
from models.checkpoint import CheckpointError, CheckpointNotFoundError
from models.metrics.catalog import METRICS, Judge, best_by
from trainers.loop.terminal import say

FIDELITY = ("psnr", "ms_ssim", "lpips")


class Judges:
    """Metrics of the catalogue, loaded: how good pictures are, and how near to HQ.

    Args:
        names: of `METRICS`.
        folders: of weights, by name; of a metric without one, they are looked for in torch.hub's
            cache, and where they are missing the metric is left out, which is said.
        device: of the pictures.

    Raises:
        UserError: the weights given are missing, or those at hand are damaged.
    """

    def __init__(
        self, names: Sequence[str], folders: Mapping[str, str | None], device: torch.device
    ) -> None:
        self._judges: dict[str, Judge] = {}
        missing: dict[str, str] = {}
        for name in names:
            folder = folders.get(name)
            where = None if folder is None else Path(at_hand(str(path_of(folder))))
            try:
                self._judges[name] = METRICS[name].load(where, device)
            except CheckpointError as error:
                if folder is not None or not isinstance(error, CheckpointNotFoundError):
                    raise UserError(f"--{name}: {error}") from error
                missing[name] = str(error)
        # Machines may differ in what their caches hold: a metric is of all ranks, or not there.
        anywhere = {name: why for mine in gathered(missing) for name, why in mine.items()}
        for name, message in anywhere.items():
            self._judges.pop(name, None)
            say(f"validation is without {name.upper()}: {message}; or give --{name} FOLDER\n")

    def identities(self) -> dict[str, str]:
        """Return what the values of each metric depend on: variant, implementation, weights."""
        return {
            name: " ".join((METRICS[name].variant, METRICS[name].implementation, judge.digest))
            for name, judge in self._judges.items()
        }

    def names(self, side: int) -> list[str]:
        """List the metrics of pictures whose shorter side has so many pixels."""
        return [name for name in self._judges if side >= METRICS[name].min_side]

    @torch.no_grad()
    def __call__(self, pictures: Tensor, hq: Tensor | None = None) -> dict[str, Tensor]:
        """Judge uint8 pictures [B, 3, H, W]; by themselves only, if there is no ``hq``.

        Returns:
            By the name of each metric that pictures of this size have: the values that are defined,
            at most B.
        """
        found = {}
        for name, judge in self._judges.items():
            metric = METRICS[name]
            if min(pictures.shape[2:]) < metric.min_side or (metric.needs_reference and hq is None):
                continue
            values = judge.compute(pictures, *([hq] if metric.needs_reference else []))
            found[name] = values[~values.isnan()]
        return found


def choose_best(asked: str | None, computed: Sequence[str]) -> str:
    """Choose the metric of the best checkpoints: what was asked for, else the first computed.

    Args:
        asked: the option --best.
        computed: metrics of the catalogue, or "loss", that validation has of the network.

    Returns:
        Its name; prefixed by "-" if less is better.

    Raises:
        UserError: it is not computed.
    """
    if asked is not None and asked not in computed:
        needs = "; lpips needs --lpips FOLDER" if asked == "lpips" else ""
        raise UserError(
            f"--best {asked}: validation has no such metric here; choose one of "
            f"{', '.join(computed)}{needs}"
        )
    name = asked or computed[0]
    return "-loss" if name == "loss" else best_by(name)


class Averages:
    """Means over samples, each over those that have the number."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, values: Mapping[str, Tensor], suffix: str = "") -> None:
        """Take the numbers of some samples, [B] by name; the suffix is appended to the names."""
        for name, value in values.items():
            total, count = self._sums.get(name + suffix, (0.0, 0))
            self._sums[name + suffix] = total + value.double().sum().item(), count + len(value)

    def over_ranks(self, device: torch.device) -> dict[str, float]:
        """Return the means over the samples of all ranks, which call this together."""
        names = sorted({name for mine in gathered(list(self._sums)) for name in mine})
        mine = [number for name in names for number in self._sums.get(name, (0.0, 0))]
        added = sums(mine, str(device))
        pairs = zip(names, added[::2], added[1::2], strict=True)
        return {name: total / count for name, total, count in pairs if count}
