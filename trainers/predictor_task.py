"""The posterior-mean predictor as a task of the loop: its data, its loss, its validation."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.degradation_parameters import degradation_preset
from datasets.images import DegradedBatch, ImageSet, OnlinePairs
from datasets.loading import Loader, LoaderConfig
from datasets.order import Layout
from infra.distributed import rank, sums
from infra.storage import local_path
from models.checkpoint import save_checkpoint
from models.metrics import MIN_SIDE, ms_ssim, psnr, to_uint8
from models.swinir import SwinIR, preset
from trainers.cost import forward_flops
from trainers.draws import Draws
from trainers.engine import Engine
from trainers.pictures import grid
from trainers.predictor import PredictorConfig
from trainers.task import Validation
from trainers.vae_task import held_out, validation_layout

VALIDATION_BATCH = 4
VALIDATION_SEED = 0  # of the degradations, the same for every run, so that runs compare
EXPORT = "predictor"


class PredictorTask:
    """See `trainers.loop.Task`."""

    experiment = "latent-pmrf/predictor"
    best = "psnr"

    def __init__(self, config: PredictorConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.sets = [ImageSet(local_path(path)) for path in config.images]
        degradation = degradation_preset(config.degradation)
        self.samples = OnlinePairs(self.sets, degradation, config.images_weights or None)
        self.held_out = OnlinePairs([held_out(config.images[0])], degradation)
        with torch.random.fork_rng():
            torch.manual_seed(config.loop.seed)
            self.network = SwinIR(preset(config.model)).to(device)
        self.network.activation_checkpointing = config.engine.activation_checkpointing
        self.trained = self.network

    def loader(self, layout: Layout, state: Mapping[str, Any] | None) -> Loader[DegradedBatch]:
        """Open the training pairs where ``state`` says."""
        settings = LoaderConfig(
            seed=self.config.loop.seed,
            workers=self.config.loop.workers,
            processes=True,
            pin_memory=self.device.type == "cuda",
        )
        return Loader(self.samples, layout, settings, state)

    def losses(self, engine: Engine, batch: DegradedBatch, draws: Draws) -> dict[str, Tensor]:
        """Compute the error of the prediction, both images in [0, 1], not clamped."""
        lq, hq = (unit_range(side.to(self.device)) for side in (batch.lq, batch.hq))
        error = {"mse": F.mse_loss, "l1": F.l1_loss}[self.config.error]
        return {"loss": error(engine(lq).float(), hq)}

    @torch.no_grad()
    def validate(self, network: nn.Module) -> Validation:
        """Predict the held-out images under their fixed degradations; LQ is the reference."""
        assert isinstance(network, SwinIR)
        layout = validation_layout(self.held_out.parts[0].size, VALIDATION_BATCH)
        settings = LoaderConfig(seed=VALIDATION_SEED, workers=self.config.loop.workers)
        totals: dict[str, float] = {"images": 0.0}
        columns: dict[str, list[Tensor]] = {"lq": [], "posterior_mean": [], "HQ": []}
        for batch, count in Loader(self.held_out, layout, settings).sweep():
            lq = unit_range(batch.lq.to(self.device)).clamp(0, 1)
            images = (batch.lq, network.posterior_mean(lq) * 2 - 1, batch.hq)
            levels = [to_uint8(some[:count].to(self.device)) for some in images]
            totals["images"] += count
            for suffix, some in zip(("_lq", ""), levels, strict=False):
                for name, metric in _metrics(some).items():
                    value = metric(some, levels[-1]).sum().item()
                    totals[name + suffix] = totals.get(name + suffix, 0.0) + value
            if sum(map(len, columns["HQ"])) < self.config.grid_images:
                for column, some in zip(columns.values(), levels, strict=True):
                    column.append(some.cpu())
        names = sorted(totals)
        added = dict(zip(names, sums([totals[n] for n in names], str(self.device)), strict=True))
        count = added.pop("images")
        shown = {
            title: torch.cat(some)[: self.config.grid_images] for title, some in columns.items()
        }
        picture = grid(shown, "HQ") if rank() == 0 else None
        return Validation({name: total / count for name, total in added.items()}, picture)

    def flops_per_sample(self) -> int:
        """Count forward and backward of the predictor."""
        height, width, _ = self.sets[0].pixels(0).shape
        return 3 * forward_flops(lambda: SwinIR(self.network.config), (1, 3, height, width))

    def data(self) -> list[tuple[str, str, str, str]]:
        """Name the image sets."""
        return [
            (local_path(path).name, images.digest.partition("/")[0], path, "training")
            for path, images in zip(self.config.images, self.sets, strict=True)
        ]

    def export(self, network: nn.Module) -> None:
        """Write the folder that `models.frozen.load_posterior_mean` reads."""
        assert isinstance(network, SwinIR)
        folder = local_path(self.config.loop.output) / EXPORT
        save_checkpoint(folder, network.state_dict(), asdict(network.config))


def unit_range(images: Tensor) -> Tensor:
    """[-1, 1] => [0, 1]."""
    return (images + 1) / 2


def _metrics(images: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = {"psnr": psnr}
    if min(images.shape[2:]) >= MIN_SIDE:
        found["ms_ssim"] = ms_ssim
    return found
