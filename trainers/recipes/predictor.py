"""The posterior-mean predictor as a task of the loop: its data, its loss, its validation."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.degradation.parameters import degradation_preset
from datasets.reading.images import DegradedBatch, OnlinePairs
from datasets.reading.loader import Loader
from datasets.reading.order import Layout
from infra.tracking.models import FinishedModel
from models.checkpoint import save_checkpoint
from models.predictor.swinir import SwinIR, load_predictor, preset
from models.ranges import model_to_unit, to_uint8, unit_to_model
from trainers.loop.cost import flops_of
from trainers.loop.engine import autocast
from trainers.loop.noise import Noise
from trainers.loop.place import work_folder
from trainers.loop.task import Between, Finished, Runner, Validation, unwatched
from trainers.recipes.data import (
    held_out,
    judged_on,
    keys_of_sources,
    named,
    open_images,
    shorter_side,
    sweep,
    swept,
    training_loader,
)
from trainers.recipes.judging import FIDELITY, Averages, Judges, choose_best
from trainers.recipes.pictures import Gallery
from trainers.recipes.predictor_config import PredictorConfig

EXPORT = "predictor"


class PredictorTask:
    """See `trainers.loop.task.Task`."""

    experiment = "latent-pmrf/predictor"

    def __init__(self, config: PredictorConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.sets = [open_images(path, config.loop) for path in config.images]
        degradation = degradation_preset(config.degradation)
        self.samples = OnlinePairs(self.sets, degradation, config.images_weights or None)
        self.held_out: OnlinePairs | None = None
        if config.loop.validate_every:
            self.held_out = OnlinePairs([held_out(config.images[0], config.loop)], degradation)
        self.judges = Judges(FIDELITY, {"lpips": config.lpips}, device)
        self.best = choose_best(config.loop.best, self.judges.names(shorter_side(self.sets[0])))
        with torch.random.fork_rng():
            torch.manual_seed(config.loop.seed)
            self.network = SwinIR(preset(config.model)).to(device)
        self.network.activation_checkpointing = config.engine.activation_checkpointing
        self.trained = self.network

    def published(self, path: Path) -> SwinIR:
        """Load a file as DifFace published it."""
        return load_predictor(path, self.network.config)

    def loader(self, layout: Layout, state: Mapping[str, Any] | None) -> Loader[DegradedBatch]:
        """Open the training pairs where ``state`` says."""
        return training_loader(self.samples, layout, state, self.config.loop, self.device)

    def losses(self, engine: Runner, batch: DegradedBatch, noise: Noise) -> dict[str, Tensor]:
        """Compute the error of the prediction, both images in [0, 1], not clamped."""
        sides = (side.to(self.device, non_blocking=True) for side in (batch.lq, batch.hq))
        lq, hq = map(model_to_unit, sides)
        error = {"mse": F.mse_loss, "l1": F.l1_loss}[self.config.error]
        return {"loss": error(engine(lq).float(), hq)}

    @torch.no_grad()
    def validate(self, network: nn.Module, between: Between = unwatched) -> Validation:
        """Predict the held-out images under their fixed degradations; LQ is the reference."""
        assert isinstance(network, SwinIR)
        assert self.held_out is not None
        averages = Averages()
        loop = self.config.loop
        shown = keys_of_sources(self.held_out, swept(self.held_out, loop), self.config.grid_images)
        gallery = Gallery(shown, ("lq", "posterior_mean", "hq"))
        for batch, count, _ in sweep(self.held_out, loop, self.device, between):
            lq, hq = (side.to(self.device, non_blocking=True) for side in (batch.lq, batch.hq))
            with autocast(self.config.engine, self.device):
                mean = network.posterior_mean(model_to_unit(lq).clamp(0, 1)).float()
            images = {"lq": lq, "posterior_mean": unit_to_model(mean), "hq": hq}
            pictures = {name: to_uint8(some[:count]) for name, some in images.items()}
            averages.add(self.judges(pictures["posterior_mean"], pictures["hq"]))
            averages.add(self.judges(pictures["lq"], pictures["hq"]), "_lq")
            gallery.add(pictures, batch.keys[:count])
        return Validation(averages.over_ranks(self.device), gallery.grid())

    def flops_per_sample(self) -> int:
        """Count forward and backward of the predictor."""
        height, width, _ = self.sets[0].pixels(0).shape
        return 3 * flops_of(SwinIR, self.network.config, (1, 3, height, width))

    def data(self) -> list[tuple[str, str, str, str]]:
        """Name the image sets."""
        sets = zip(self.config.images, self.sets, strict=True)
        return [named(path, images) for path, images in sets]

    def networks(self) -> dict[str, str]:
        """Name nothing: the loss is of pictures alone."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Tell what validation judges, and by what."""
        if self.held_out is None:
            return {}
        judged = judged_on([self.held_out], self.config.loop, self.judges.identities())
        return {"validation": judged}

    def restoring(self) -> None:
        """Tell nothing: it restores by itself no picture, only as a part of a flow."""

    def export(self, network: nn.Module, run: Finished) -> FinishedModel:
        """Write the folder that `models.frozen.load_posterior_mean` reads."""
        assert isinstance(network, SwinIR)
        folder, images = work_folder(self.config.loop) / EXPORT, (-1, 3, -1, -1)
        return FinishedModel(
            name="posterior-mean",
            folder=folder,
            digest=save_checkpoint(folder, network.state_dict(), asdict(network.config)),
            facts={},
            inputs={"lq": images},
            outputs={"posterior_mean": images},
            use=f"{self.config.model}: `--predictor FOLDER` of `pipelines.encode` and "
            "`trainers/flow.py`. Images are in [0, 1].",
        )
