"""A flow's pictures in validation: restored, next to what it starts from and to its bounds."""

import functools
from collections.abc import Mapping
from typing import Any

import cv2
import torch
from torch import Tensor, nn

from datasets.reading.images import DegradedBatch, OnlinePairs
from models.noise import NamedNoise, Purpose
from models.ranges import model_to_unit, unit_to_uint8
from models.restorer import Restorer
from trainers.loop.engine import autocast
from trainers.loop.task import Between
from trainers.recipes.data import SEED, judged_on, keys_of_sources, shorter_side, sweep, swept
from trainers.recipes.flow_config import FlowConfig
from trainers.recipes.flow_pairs import lq_levels
from trainers.recipes.judging import FIDELITY, Averages, Judges
from trainers.recipes.pictures import Gallery

COLUMNS = ("lq", "posterior_mean", "restored", "reconstruction", "hq")


class Restorations:
    """Restores held-out pictures and judges them.

    A picture is a function of the network, the sample and its key: `python -m pipelines.restore
    --seed 0` makes the same of the LQ image in a file of that name.

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
        names = (*FIDELITY, *(["dists"] if config.dists else []), "brisque")
        self.judges = Judges(names, {"lpips": config.lpips, "dists": config.dists}, device)
        self.references: dict[str, float] | None = None
        cv2.setNumThreads(1)  # BRISQUE's: every rank has a thread of its own

    def metrics(self) -> list[str]:
        """List the metrics of restored pictures of this size."""
        return self.judges.names(shorter_side(self.samples.sets[0]))

    def judged_on(self) -> dict[str, Any]:
        """Tell what the metrics depend on besides the networks."""
        return judged_on([self.samples], self.config.loop, self.judges.identities())

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
        for batch, count, _ in batches:
            has_references = self.references is None or gallery.wants(batch.keys[:count])
            pictures = self._pictures(network, batch, count, has_references=has_references)
            restored.add(self._metrics("restored", pictures))
            if self.references is None:
                for title in pictures.keys() - {"restored"}:
                    references.add(self._metrics(title, pictures), f"_{title}")
            gallery.add(pictures, batch.keys[:count])
        if self.references is None:
            self.references = references.over_ranks(self.device)
        return {**restored.over_ranks(self.device), **self.references}, gallery

    def _pictures(
        self, network: nn.Module, batch: DegradedBatch, count: int, *, has_references: bool
    ) -> dict[str, Tensor]:
        """Restore the first ``count`` samples of a batch; returns uint8 [count, 3, H, W] by title.

        On a CPU a pass is of one sample, as in pipelines.restore: the size of a batch can choose
        another kernel, with other last bits.
        """
        size = 1 if self.device.type == "cpu" else count
        passes = [
            self._pass(network, batch, slice(first, first + size), has_references=has_references)
            for first in range(0, count, size)
        ]
        return {title: torch.cat([some[title] for some in passes]) for title in passes[0]}

    def _pass(
        self, network: nn.Module, batch: DegradedBatch, rows: slice, *, has_references: bool
    ) -> dict[str, Tensor]:
        """Restore some samples, by the steps and the noise of `python -m pipelines.restore`.

        The networks compute in the precision of training, as that command does if it is given the
        same as --precision.
        """
        noise = NamedNoise(SEED, batch.keys[rows])
        sides = [side[rows].to(self.device, non_blocking=True) for side in (batch.lq, batch.hq)]
        lq, hq = lq_levels(sides[0]), model_to_unit(sides[1])
        with autocast(self.config.engine, self.device):
            mean = self.restorer.posterior_mean(lq)
            steps = self.config.sampling_steps
            restored = self.restorer.restored(network, mean, noise, steps=steps)
            reconstruction = self._reconstruction(hq, noise) if has_references else None
        images = {"restored": restored, "hq": hq}
        if has_references:
            images |= {"lq": lq}
            if self.restorer.predictor is not None and self.config.source != "lq":
                images["posterior_mean"] = mean
            if reconstruction is not None:
                images["reconstruction"] = reconstruction
        return {title: unit_to_uint8(some) for title, some in images.items()}

    def _reconstruction(self, hq: Tensor, noise: NamedNoise) -> Tensor | None:
        """Carry HQ through the autoencoder, if the flow has one."""
        if self.config.space == "pixel":
            return None
        return self.restorer.image(self.restorer.encode(hq, noise, Purpose.TARGET_POSTERIOR))

    def _metrics(self, title: str, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Judge those of one title by themselves, and by their distance from HQ."""
        return self.judges(pictures[title], None if title == "hq" else pictures["hq"])
