"""The worker that takes pictures through one autoencoder.

A pass of the networks is one picture, on a GPU too, where one of 512 pixels fills it: so no picture
depends on its neighbours, on the number of workers, or on what was done before a kill.
"""

from dataclasses import dataclass
from typing import Any

import torch

from datasets.decoding import Pixels
from datasets.unusable import UnusableImage
from infra.errors import UserError
from models.frozen import Identity
from models.ranges import uint8_to_unit, unit_to_uint8
from models.restorer import HALVES, RestorationRule, Restorer
from pipelines.evaluate.vae.config import Precision
from pipelines.evaluate.vae.filling import THREADS, Filler, Target, Unit
from pipelines.evaluate.vae.latents import LatentSums
from pipelines.evaluate.vae.networks import load
from pipelines.jobs.kernels import same_in_every_run


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructSpec:
    """What all units of one autoencoder share."""

    target: Target
    where: str
    identity: Identity
    precision: Precision
    device: str
    threads: int
    session: str
    """Name of the job that is running."""


class ReconstructPictures:
    """Writes D(mode of E(x)) of pictures x; the facts are the `LatentSums` of each.

    The steps are those of `models.restorer`, by which a flow's pictures are encoded and decoded.
    """

    def __init__(self, spec: ReconstructSpec) -> None:
        same_in_every_run(spec.threads, tf32=spec.precision == "tf32")
        if spec.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: no GPU on this worker; give --device cpu")
        self.spec, self.device = spec, torch.device(spec.device)
        vae = load(spec.where, spec.identity).to(self.device)
        self.restorer = Restorer(RestorationRule(precision=spec.precision), vae=vae)
        is_gpu = spec.device == "cuda"
        self.fill = Filler(spec.target, spec.session, threads=THREADS if is_gpu else 0)

    def __call__(self, unit: Unit) -> dict[str, Any]:
        """Reconstruct the pictures of a unit.

        Raises:
            UserError: the GPU has not the memory for one.
        """
        return self.fill(unit, self._reconstructed)

    @torch.no_grad()
    def _reconstructed(self, pixels: Pixels) -> tuple[Pixels, list[Any]]:
        height, width = pixels.shape[:2]
        levels = torch.tensor(pixels, device=self.device).permute(2, 0, 1)[None]
        half = HALVES.get(self.spec.precision)
        try:
            posterior = self.restorer.posterior(uint8_to_unit(levels))
            with torch.autocast(self.device.type, half, enabled=half is not None):
                picture = self.restorer.image(posterior.mode())
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU has not the memory for a picture of {width} x {height} pixels in "
                f"{self.spec.precision}; give --precision bfloat16, or --device cpu"
            ) from error
        finite = bool(picture.isfinite().all() and posterior.mean.isfinite().all())
        if not finite:
            raise UnusableImage(
                "not_finite",
                f"{self.spec.where} makes numbers of it that are not finite, in "
                f"{self.spec.precision}"
                + ("; give --precision float32" if self.spec.precision != "float32" else ""),
            )
        made = unit_to_uint8(picture)[0].permute(1, 2, 0).contiguous().cpu().numpy()
        return made, LatentSums.of(posterior).to_json()
