"""A flow's pictures in validation: restored, next to what it starts from and to its bounds."""

from collections.abc import Mapping
from typing import Any

import cv2
import torch
from torch import Tensor, nn

from datasets.reading.images import OnlinePairs
from models.metrics.fidelity import to_uint8
from trainers.recipes.data import sweep
from trainers.recipes.flow_config import FlowConfig
from trainers.recipes.flow_pairs import Ends, Frozen, restore
from trainers.recipes.judging import FIDELITY, Averages, Judges
from trainers.recipes.pictures import Gallery

COLUMNS = ("lq", "posterior_mean", "restored", "reconstruction", "hq")


class Restorations:
    """Restores held-out pictures and judges them.

    The metrics of the restored have plain names, the others a suffix: `psnr_lq`, of the input;
    `psnr_posterior_mean`, of the most faithful estimate; `psnr_reconstruction`, of HQ through the
    autoencoder; `brisque_hq`. The references are the same at every validation and are judged once.

    Args:
        config: of the flow.
        frozen: the networks around it.
        samples: held-out images with their fixed degradations.
        device: where.
    """

    def __init__(
        self, config: FlowConfig, frozen: Frozen, samples: OnlinePairs, device: torch.device
    ) -> None:
        self.config, self.frozen, self.samples, self.device = config, frozen, samples, device
        self.judges = Judges((*FIDELITY, "brisque"), {"lpips": config.lpips}, device)
        self.references: dict[str, float] | None = None
        cv2.setNumThreads(1)  # BRISQUE's: every rank has a thread of its own

    @torch.no_grad()
    def judge(self, network: nn.Module) -> tuple[dict[str, float], Gallery]:
        """Restore the pictures; returns the metrics of all ranks, and the first pictures."""
        restored, references = Averages(), Averages()
        gallery = Gallery(self.config.grid_images, COLUMNS)
        for batch, count, noise in sweep(self.samples, self.config.loop.workers, self.device):
            ends = self.frozen.from_images(batch, noise)
            x_0 = self.frozen.noisy(ends.source, noise)
            x_1 = restore(network, x_0, ends.condition, self.config.sampling_steps)
            images = {"restored": self.frozen.image(x_1), "hq": batch.hq.to(self.device)}
            if self.references is None or not gallery.is_full:
                images |= self._references(batch, ends)
            pictures = {title: to_uint8(some[:count]) for title, some in images.items()}
            restored.add(self._metrics("restored", pictures))
            if self.references is None:
                for title in pictures.keys() - {"restored"}:
                    references.add(self._metrics(title, pictures), f"_{title}")
            gallery.add(pictures, batch.keys[:count])
        if self.references is None:
            self.references = references.over_ranks(self.device)
        return {**restored.over_ranks(self.device), **self.references}, gallery

    def _references(self, batch: Any, ends: Ends) -> dict[str, Tensor]:
        """Compute what stands next to the restored, as far as this flow has it; in [-1, 1]."""
        lq = batch.lq.to(self.device)
        images = {"lq": lq}
        if self.frozen.predictor is not None and self.config.source != "lq":
            images["posterior_mean"] = self.frozen.start(lq)
        if self.config.space == "latent":
            images["reconstruction"] = self.frozen.image(ends.target)
        return images

    def _metrics(self, title: str, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Judge those of one title by themselves, and by their distance from HQ."""
        return self.judges(pictures[title], None if title == "hq" else pictures["hq"])
