"""How validation judges: the metrics of pictures, and averages over the samples of all ranks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from infra.distributed import gathered, sums
from infra.errors import UserError
from infra.storage import local_path
from models.checkpoint import CheckpointError, CheckpointNotFoundError
from models.metrics.fidelity import MIN_SIDE, ms_ssim, psnr
from models.metrics.lpips import LPIPS, load_lpips
from models.ranges import uint8_to_model
from trainers.loop.run import say


class Fidelity:
    """How near pictures are to HQ, as the paper's tables have it; where they are large enough.

    Args:
        lpips: folder of LPIPS's weights; None: torch.hub's cache, or else no LPIPS, which is said.
        device: of the pictures.

    Raises:
        UserError: the weights given are missing, or those at hand are damaged.
    """

    def __init__(self, lpips: str | None, device: torch.device) -> None:
        self.lpips = _find_lpips(lpips)
        if self.lpips is not None:
            self.lpips.to(device)

    @torch.no_grad()
    def __call__(self, pictures: Tensor, hq: Tensor) -> dict[str, Tensor]:
        """Compare uint8 pictures [B, 3, H, W]; returns [B] by the name of the metric."""
        found, side = {"psnr": psnr(pictures, hq)}, min(hq.shape[2:])
        if side >= MIN_SIDE:
            found["ms_ssim"] = ms_ssim(pictures, hq)
        if self.lpips is not None and side >= self.lpips.min_side:
            found["lpips"] = self.lpips(uint8_to_model(pictures), uint8_to_model(hq))
        return found


def _find_lpips(folder: str | None) -> LPIPS | None:
    """Load LPIPS if every rank can: machines may differ in what their caches hold."""
    missing = ""
    try:
        lpips = load_lpips("alex", None if folder is None else local_path(folder))
    except CheckpointError as error:
        if folder is not None or not isinstance(error, CheckpointNotFoundError):
            raise UserError(f"--lpips: {error}") from error
        missing = str(error)
    messages = [message for message in gathered(missing) if message]
    if not messages:
        return lpips
    say(f"validation is without LPIPS: {messages[0]}; or give --lpips FOLDER\n")
    return None


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
