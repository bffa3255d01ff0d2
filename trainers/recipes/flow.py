"""The flow as a task of the loop: its network, its loss, its validation."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.reading.images import OnlinePairs
from datasets.reading.latents import LatentPairs
from datasets.reading.loader import Loader
from datasets.reading.order import Layout
from infra.config import to_dict
from infra.errors import UserError
from infra.tracking.models import FinishedModel
from models.bundle_facts import FlowFacts, TrainingFacts
from models.checkpoint import CONFIG, WEIGHTS, CheckpointError, save_checkpoint
from models.compilation import compile_blocks
from models.frozen import check_takes
from models.predictor.swinir import SwinIR
from models.rectified_flow import flow_matching_loss, interpolate, regress
from models.restorer import Restorer
from models.velocity import hdit, looformer
from trainers.loop.cost import encoder_flops, flops_of
from trainers.loop.engine import autocast
from trainers.loop.noise import Noise
from trainers.loop.place import work_folder
from trainers.loop.task import Between, Finished, Runner, Validation, by_name, unwatched
from trainers.loop.terminal import say
from trainers.recipes.data import (
    held_out,
    held_out_count,
    named,
    open_images,
    open_latents,
    sweep,
    training_loader,
)
from trainers.recipes.flow_bundle import AROUND, export_bundle, given_networks, versions
from trainers.recipes.flow_config import FlowConfig
from trainers.recipes.flow_latents import (
    degradation,
    refuse_other_networks,
    resolved,
    restoration_rule,
)
from trainers.recipes.flow_networks import belonging, load_networks
from trainers.recipes.flow_pairs import FlowBatch, from_images, from_latents
from trainers.recipes.flow_pictures import Restorations
from trainers.recipes.judging import Averages, choose_best

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
EXPORT = "network"
Network = looformer.LooUFormer | hdit.HDiT


class FlowTask:
    """See `trainers.loop.task.Task`.

    Attributes:
        config: with what the latents decided; the one given may leave that open.
        restorer: the frozen networks around the flow.
        samples: pairs to train on.
        held_out: pairs to validate on.
    """

    def __init__(self, config: FlowConfig, device: torch.device) -> None:
        self.device = device
        self.experiment = f"latent-pmrf/{config.stage}"
        networks = load_networks(config, device)
        self.digests = networks.digests
        self.identity: Mapping[str, Any] = {}
        self.samples: LatentPairs | OnlinePairs
        self.held_out: LatentPairs | OnlinePairs | None = None
        is_validated = config.loop.validate_every > 0
        if config.draws == "cached":
            self.samples = _latents(config, "train")
            self.held_out = _latents(config, "val") if is_validated else None
            self.identity = self.samples.manifest.get("identity", {})
            refuse_other_networks(config, self.digests, self.identity)
        self.config = config = resolved(config, self.identity)
        self.restorer = Restorer(
            restoration_rule(config, self.identity),
            vae=networks.vae,
            predictor=networks.predictor,
            regressor=networks.regressor,
        )
        if config.draws == "online":
            sets = [open_images(path, config.loop) for path in config.images]
            self.samples = OnlinePairs(sets, degradation(config, self.identity))
            self.held_out = self._pictures() if is_validated else None
        self.shape = self._shape()
        self.restorations: Restorations | None = None
        if config.restores and is_validated:
            self.restorations = Restorations(config, self.restorer, self._pictures(), device)
        self.best = self._best()
        self._config = self._network_config()
        self._check_shape()
        if config.engine.compiles(device.type):
            for frozen in self._frozen_of_a_step():
                compile_blocks(frozen)
        with torch.random.fork_rng():
            torch.manual_seed(config.loop.seed)
            self.network = _build(self._config).to(device)
        self.network.activation_checkpointing = config.engine.activation_checkpointing
        self.trained = self.network

    def published(self, path: Path) -> nn.Module:
        """Refuse: no flow of another form is known."""
        raise CheckpointError(
            f"{path}: expected {WEIGHTS} and {CONFIG}, as this program writes them in OUTPUT/"
            f"{EXPORT} and in its checkpoints"
        )

    def loader(self, layout: Layout, state: Mapping[str, Any] | None) -> Loader[Any]:
        """Open the training pairs where ``state`` says."""
        return training_loader(self.samples, layout, state, self.config.loop, self.device)

    def losses(self, engine: Runner, batch: Any, noise: Noise) -> dict[str, Tensor]:
        """Compute the loss of Eq. 5, or the regressor's squared error."""
        pairs = self._pairs(batch, noise)
        if self.config.stage == "regressor":
            return {"loss": F.mse_loss(regress(engine, pairs.source).float(), pairs.target)}
        x_0, t = self.restorer.x_0(pairs.source, noise), noise.times(self.config.times)
        condition = () if pairs.condition is None else (pairs.condition,)
        velocity = engine(interpolate(x_0, pairs.target, t), t, *condition)
        return {"loss": flow_matching_loss(velocity, x_0, pairs.target)}

    @torch.no_grad()
    def validate(self, network: nn.Module, between: Between = unwatched) -> Validation:
        """Compute the loss by t on held-out pairs; restore held-out pictures, if there are any."""
        averages, is_flow = Averages(), self.config.stage == "flow"
        batches = sweep(self.held_out, self.config.loop, self.device, between, "pairs")
        for batch, count, noise in batches:
            pairs = self._pairs(batch, noise)
            with autocast(self.config.engine, self.device):
                losses = (
                    self._losses_by_time(network, pairs, noise)
                    if is_flow
                    else {  # how far the source is by itself
                        "loss": _per_sample(regress(network, pairs.source), pairs.target),
                        "reference": _per_sample(pairs.source, pairs.target),
                    }
                )
            averages.add({name: loss[:count] for name, loss in losses.items()})
        metrics = averages.over_ranks(self.device)
        if is_flow:
            metrics = {"loss": sum(metrics.values()) / len(TIMES), **metrics}
        if self.restorations is None:
            return Validation(metrics)
        found, gallery = self.restorations.judge(network, between)
        return Validation({**metrics, **found}, gallery.grid())

    def _best(self) -> str:
        """Choose the metric of the best checkpoints: LPIPS, if validation has it."""
        judged = () if self.restorations is None else self.restorations.metrics()
        computed = [
            name for name in ("lpips", "psnr", "ms_ssim", "dists", "brisque") if name in judged
        ]
        if self.config.loop.best is None and computed[:1] == ["psnr"]:
            say(
                "the best checkpoints are those of the highest PSNR, which falls as a flow learns "
                "texture: give --lpips FOLDER, or --best\n"
            )
        return choose_best(self.config.loop.best, [*computed, "loss"])

    def _losses_by_time(
        self, network: nn.Module, pairs: FlowBatch, noise: Noise
    ) -> dict[str, Tensor]:
        x_0 = self.restorer.x_0(pairs.source, noise)
        condition = () if pairs.condition is None else (pairs.condition,)
        losses = {}
        for time in TIMES:
            t = torch.full((len(x_0),), time, device=self.device)
            velocity = network(interpolate(x_0, pairs.target, t), t, *condition)
            losses[f"loss_t{time}"] = _per_sample(velocity, pairs.target - x_0)
        return losses

    def _pairs(self, batch: Any, noise: Noise) -> FlowBatch:
        with autocast(self.config.engine, self.device):
            if self.config.draws == "online":
                return from_images(self.restorer, batch, noise)
            return from_latents(
                self.restorer, batch, noise, is_regressed=self._latents_are_regressed
            )

    @property
    def _latents_are_regressed(self) -> bool:
        return self.identity.get("source") == "regressed"

    def _frozen_of_a_step(self) -> Iterator[nn.Module]:
        """Yield the frozen networks that training runs; the others are for validation alone."""
        vae, predictor = self.restorer.vae, self.restorer.predictor
        if self.config.draws == "online":
            yield from filter(None, (vae, None if self.config.source == "lq" else predictor))
        if self.restorer.regressor is not None and not self._latents_are_regressed:
            yield self.restorer.regressor

    def _pictures(self) -> OnlinePairs:
        images = held_out(self.config.images[0], self.config.loop)
        return OnlinePairs([images], degradation(self.config, self.identity))

    def _shape(self) -> tuple[int, ...]:
        """Return the shape of a point of the flow, [C, H, W]."""
        if isinstance(self.samples, LatentPairs):
            return self.samples.latent.shape
        height, width, _ = self.samples.sets[0].pixels(0).shape
        vae = self.restorer.vae
        if vae is None:
            return (3, height, width)
        factor = vae.downsample_factor
        return (vae.latent_channels, height // factor, width // factor)

    def _network_config(self) -> looformer.LooUFormerConfig | hdit.HDiTConfig:
        table: Mapping[str, Any] = (
            looformer.PRESETS if self.config.space == "latent" else hdit.PRESETS
        )
        if self.config.model not in table:
            raise UserError(
                f"--model {self.config.model}: unknown for --space {self.config.space}; choose one "
                f"of {', '.join(table)}"
            )
        chosen: looformer.LooUFormerConfig | hdit.HDiTConfig = table[self.config.model]
        channels = self.shape[0] if self.config.conditional else 0
        return dataclasses.replace(chosen, condition_channels=channels)

    def _check_shape(self) -> None:
        """Refuse data that the network cannot take, before anything is built."""
        if self._config.in_channels != self.shape[0]:
            raise UserError(
                f"--model {self.config.model} has {self._config.in_channels} channels, the data "
                f"have {self.shape[0]}: choose the model for this autoencoder"
            )
        if self.restorer.regressor is not None:
            try:
                check_takes(self.restorer.regressor, self.shape)
            except CheckpointError as error:
                raise UserError(f"--regressor {self.config.regressor}: {error}") from error
        try:
            self._flops = self._count()
        except ValueError as error:
            raise UserError(f"--model {self.config.model}: {error}") from error

    def flops_per_sample(self) -> int:
        """Return what forward and backward take, and the forward of frozen networks in a step."""
        return self._flops

    def _count(self) -> int:
        inputs = [(1, *self.shape), (1,)]
        if self.config.conditional:
            inputs.append((1, *self.shape))
        flops = 3 * flops_of(_build, self._config, *inputs)
        if self.config.draws == "online":
            predicting, encoding = self._frozen_flops()
            flops += predicting + 2 * encoding
        if not self._latents_are_regressed:
            flops += self._regressor_flops()
        return flops

    def _frozen_flops(self) -> tuple[int, int]:
        """Count a posterior mean and an encoding of an image; 0 of what this run is without."""
        vae, predictor = self.restorer.vae, self.restorer.predictor
        factor = 1 if vae is None else vae.downsample_factor
        side = (1, 3, self.shape[1] * factor, self.shape[2] * factor)
        predicting = 0
        if predictor is not None and self.config.source != "lq":
            predicting = flops_of(SwinIR, predictor.config, side)
        return predicting, 0 if vae is None else encoder_flops(vae, side)

    def _regressor_flops(self) -> int:
        """Count the regressor's pass over a latent; 0 where this run has none."""
        regressor = self.restorer.regressor
        if regressor is None:
            return 0
        return flops_of(_build, regressor.config, (1, *self.shape), (1,))

    def facts(self) -> dict[str, Any]:
        """Tell what validation judges and by what, and what encoding the latents took."""
        if self.restorations is None:
            return {}
        facts: dict[str, Any] = {"validation": self.restorations.judged_on()}
        if isinstance(self.samples, LatentPairs):
            totals, made = self.samples.manifest.get("totals"), self.identity.get("source")
            if totals and (self.restorer.predictor is not None or made == "lq"):
                facts["encoding_flops"] = self._encoding_flops(totals, made)
        return facts

    def _encoding_flops(self, totals: Mapping[str, int], made: str | None) -> int:
        """Count the encoding of a whole set: each image, its mirror image, and every draw."""
        predicting, encoding = self._frozen_flops()
        targets, sources = 2 * totals["samples"] + totals["gray"], totals["pairs"]
        regressing = self._regressor_flops() if made == "regressed" else 0
        return (targets + sources) * encoding + sources * (predicting + regressing)

    def data(self) -> list[tuple[str, str, str, str]]:
        """Name the sets."""
        if isinstance(self.samples, LatentPairs):
            return [named(self.config.latents, self.samples)]
        sets = zip(self.config.images, self.samples.sets, strict=True)
        return [named(path, images) for path, images in sets]

    def networks(self) -> dict[str, str]:
        """Name the networks that the pairs come from, and the regressor that is applied to them."""
        return {name: self._belongs[name] for name in AROUND if self._belongs.get(name)}

    def restoring(self) -> dict[str, Any] | None:
        """Tell what restores with the network beside it; a regressor by itself restores nothing."""
        return None if self.config.stage == "regressor" else to_dict(self._facts)

    def _degradation(self) -> dict[str, Any]:
        """Return what makes LQ of HQ in this run; empty where the latents do not say."""
        if self.config.degradation is None and "degradation" not in self.identity:
            return {}
        return to_dict(degradation(self.config, self.identity))

    @functools.cached_property
    def _facts(self) -> FlowFacts:
        config, networks = self.config, self.networks()
        judged = self.held_out if self.restorations is None else self.restorations.samples
        training = TrainingFacts(
            max_steps=config.loop.max_steps,
            batch=config.engine.global_batch_size,
            data=by_name(self.data()),
            degradation=self._degradation(),
            held_out=None if judged is None else held_out_count(judged, config.loop),
            versions=versions(),
        )
        return FlowFacts(
            rule=self.restorer.rule,
            side=self.shape[1],
            alignment=config.alignment,
            steps=config.sampling_steps,
            best=self.best,
            networks=given_networks(config),
            weights={name: networks[name] for name in AROUND if name in networks},
            flops_per_step=self.flops_per_sample() * config.engine.global_batch_size,
            training=training,
        )

    @property
    def _belongs(self) -> dict[str, Any]:
        """The identity of the networks that made the pairs, and what else latents say of it."""
        identity = {**belonging(self.config, self.digests), **self.identity}
        if "regressor" in self.digests:
            identity["regressor"] = self.digests["regressor"]
        return identity

    def export(self, network: nn.Module, run: Finished) -> FinishedModel:
        """Write the network as `models.checkpoint.load_checkpoint` reads it, and the bundle."""
        loop, work = self.config.loop, work_folder(self.config.loop)
        digest = save_checkpoint(work / EXPORT, network.state_dict(), asdict(self._config))
        model = finished_flow(self.config, self.shape, work / EXPORT, digest, self.networks())
        if self.config.stage == "regressor":
            return model
        said = export_bundle(work, loop.output, network, self.restorer, self._facts, run)
        return dataclasses.replace(model, use=f"{model.use} All that restores faces: {said}.")


def _latents(config: FlowConfig, split: str) -> LatentPairs:
    try:
        return open_latents(config.latents, config.loop, split)
    except UserError as error:
        raise UserError(f"--latents: {error}") from error


def _build(config: looformer.LooUFormerConfig | hdit.HDiTConfig) -> Network:
    if isinstance(config, looformer.LooUFormerConfig):
        return looformer.LooUFormer(config)
    return hdit.HDiT(config)


def _per_sample(value: Tensor, expected: Tensor) -> Tensor:
    """Return the mean squared error of each sample, [B]."""
    return (value.float() - expected.float()).square().flatten(1).mean(dim=1)


def finished_flow(
    config: FlowConfig,
    shape: tuple[int, ...],
    folder: Path,
    digest: str,
    networks: Mapping[str, str],
) -> FinishedModel:
    """Describe a network in ``folder``.

    Args:
        config: of its training.
        shape: of a point of the flow, [C, H, W].
        folder: as `models.checkpoint.save_checkpoint` wrote it.
        digest: of its weights.
        networks: that its pairs came from, by the digests of their weights.
    """
    x, is_flow = (-1, *shape), config.stage == "flow"
    condition = {"condition": x} if config.conditional else {}
    reads = "" if is_flow else ", or `trainers.flow --source regressed --regressor FOLDER`"
    return FinishedModel(
        name=f"latent-pmrf-{config.stage}" if config.space == "latent" else "pmrf-flow",
        folder=folder,
        digest=digest,
        facts={"belongs_to": dict(networks)},
        inputs={"x_t": x, "t": (-1,), **condition},
        outputs={"velocity" if is_flow else "residual": x},
        use=f"{config.model}: `models.checkpoint.load_checkpoint(FOLDER)`{reads}.",
    )
