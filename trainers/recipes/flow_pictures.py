"""A flow's pictures in validation: restored, next to what it starts from and to its bounds."""

import functools
from collections.abc import Mapping

import cv2
import torch
from torch import Tensor, nn

from datasets.reading.images import DegradedBatch, OnlinePairs
from models.ranges import model_to_unit, unit_to_uint8
from models.restorer import Restorer
from trainers.loop.task import Between
from trainers.recipes.data import keys_of_sources, shorter_side, sweep, swept
from trainers.recipes.flow_config import FlowConfig
from trainers.recipes.flow_pairs import from_images, lq_levels
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
        restorer: the networks around it.
        samples: held-out images with their fixed degradations.
        device: where.
    """

    def __init__(
        self, config: FlowConfig, restorer: Restorer, samples: OnlinePairs, device: torch.device
    ) -> None:
        self.config, self.restorer, self.samples, self.device = config, restorer, samples, device
        self.judges = Judges((*FIDELITY, "brisque"), {"lpips": config.lpips}, device)
        self.references: dict[str, float] | None = None
        cv2.setNumThreads(1)  # BRISQUE's: every rank has a thread of its own

    def metrics(self) -> list[str]:
        """List the metrics of restored pictures of this size."""
        return self.judges.names(shorter_side(self.samples.sets[0]))

    @functools.cached_property
    def _shown(self) -> list[str]:
        """Keys of the samples to look at, among those of this rank."""
        numbers = swept(self.samples, self.config.loop)
        return keys_of_sources(self.samples, numbers, self.config.grid_images)

    @torch.no_grad()
    def judge(self, network: nn.Module, between: Between) -> tuple[dict[str, float], Gallery]:
        """Restore the pictures; returns the metrics of all ranks, and pictures to look at."""
        restored, references = Averages(), Averages()
        gallery = Gallery(self._shown, COLUMNS)
        batches = sweep(self.samples, self.config.loop, self.device, between, "restorations")
        for batch, count, noise in batches:
            pairs = from_images(self.restorer, batch, noise)
            x_0, steps = self.restorer.x_0(pairs.source, noise), self.config.sampling_steps
            x_1 = self.restorer.solve(network, x_0, pairs.condition, steps)
            hq = model_to_unit(batch.hq.to(self.device))
            images = {"restored": self.restorer.image(x_1), "hq": hq}
            if self.references is None or gallery.wants(batch.keys[:count]):
                images |= self._references(batch, pairs.target)
            pictures = {title: unit_to_uint8(some[:count]) for title, some in images.items()}
            restored.add(self._metrics("restored", pictures))
            if self.references is None:
                for title in pictures.keys() - {"restored"}:
                    references.add(self._metrics(title, pictures), f"_{title}")
            gallery.add(pictures, batch.keys[:count])
        if self.references is None:
            self.references = references.over_ranks(self.device)
        return {**restored.over_ranks(self.device), **self.references}, gallery

    def _references(self, batch: DegradedBatch, target: Tensor) -> dict[str, Tensor]:
        """Compute what stands next to the restored, as far as this flow has it; in [0, 1]."""
        lq = lq_levels(batch.lq.to(self.device))
        images = {"lq": lq}
        if self.restorer.predictor is not None and self.config.source != "lq":
            images["posterior_mean"] = self.restorer.posterior_mean(lq)
        if self.config.space == "latent":
            images["reconstruction"] = self.restorer.image(target)
        return images

    def _metrics(self, title: str, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Judge those of one title by themselves, and by their distance from HQ."""
        return self.judges(pictures[title], None if title == "hq" else pictures["hq"])
