"""Sim-VAE as a task of the loop: its data, its loss, its validation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.reading.images import Crops, ImageBatch
from datasets.reading.loader import Loader
from datasets.reading.order import Layout
from infra.copies import at_hand
from infra.distributed import sums
from infra.errors import UserError
from infra.tracking.models import FinishedModel
from models.checkpoint import CheckpointError, weights_digest
from models.compilation import compile_blocks
from models.losses import PerceptualLoss, SimVAELoss
from models.metrics.backbones import VGG19, load_vgg19
from models.noise import Purpose
from models.ranges import to_uint8
from models.vae.folder import load_sim_vae, save_sim_vae
from models.vae.sim_vae import SimVAE, preset
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
from trainers.recipes.vae_config import VAEConfig

EXPORT = "vae"


class Reconstruction(nn.Module):
    """Both halves of the autoencoder in one forward pass, so that the engine sees all of it."""

    def __init__(self, vae: SimVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct images [B, 3, H, W] from a sample of their posterior.

        Args:
            images: in [-1, 1].
            noise: of the sample, [B, C, h, w].

        Returns:
            The reconstruction, and the posterior's mean and log-variance.
        """
        posterior = self.vae.encode(images)
        return self.vae.decode(posterior.sample(noise=noise)), *posterior


class VAETask:
    """See `trainers.loop.task.Task`."""

    experiment = "latent-pmrf/vae"

    def __init__(self, config: VAEConfig, device: torch.device) -> None:
        self.config = config
        self.sets = [open_images(path, config.loop) for path in config.data]
        validated = config.data if config.loop.validate_every else ()
        self.held_out = [held_out(path, config.loop) for path in validated]
        perceptual, self._vgg = None, ""
        if config.loss.perceptual:
            try:
                vgg = load_vgg19(config.vgg and at_hand(config.vgg))
                self._vgg = weights_digest(vgg.state_dict())
                perceptual = PerceptualLoss(vgg).to(device)
                if config.engine.compiles(device.type):
                    compile_blocks(perceptual)
            except CheckpointError as error:
                raise UserError(f"--vgg: {error}; or train with --perceptual 0") from error
        self.loss = SimVAELoss(config.loss, perceptual)
        self.judges = Judges(FIDELITY, {"lpips": config.lpips}, device)
        side = max(map(shorter_side, self.held_out or self.sets))
        self.best = choose_best(config.loop.best, self.judges.names(side))
        with torch.random.fork_rng():
            torch.manual_seed(config.loop.seed)
            self.network = SimVAE(
                preset(config.model),
                gradient_checkpointing=config.engine.activation_checkpointing,
            ).to(device)
        self.trained = Reconstruction(self.network)
        self.device = device

    def published(self, path: Path) -> SimVAE:
        """Load a folder in diffusers' layout, such as the released Sim-VAE."""
        return load_sim_vae(path)

    def loader(self, layout: Layout, state: Mapping[str, Any] | None) -> Loader[ImageBatch]:
        """Open the training crops where ``state`` says."""
        config = self.config
        crops = Crops(self.sets, config.data_weights or None, crop=config.crop, flip=config.flip)
        return training_loader(crops, layout, state, config.loop, self.device)

    def losses(self, engine: Runner, batch: ImageBatch, noise: Noise) -> dict[str, Tensor]:
        """Compute the loss of Sec. 4.2 and its terms, without their weights."""
        images = batch.images.to(self.device, non_blocking=True)
        images = images.contiguous(memory_format=torch.channels_last)
        sides = (side // self.network.downsample_factor for side in images.shape[2:])
        eps = noise.normal((self.network.latent_channels, *sides), Purpose.TARGET_POSTERIOR)
        reconstruction, mean, logvar = engine(images, eps)
        with engine.autocast():
            found = self.loss(reconstruction, images, mean, logvar)
        terms = {"loss": found.total, "l1": found.l1, "kl": found.kl}
        return terms | ({"perceptual": found.perceptual} if self.loss.perceptual else {})

    @torch.no_grad()
    def validate(self, network: nn.Module, between: Between = unwatched) -> Validation:
        """Reconstruct the held-out images, whole, from the mode of their posterior."""
        assert isinstance(network, SimVAE)
        loop, count = self.config.loop, 0
        wholes = self._wholes
        shown = keys_of_sources(wholes[0], swept(wholes[0], loop), self.config.grid_images)
        averages, gallery = Averages(), Gallery(shown, ("hq", "reconstruction"))
        channels = torch.zeros(3, network.latent_channels, dtype=torch.float64, device=self.device)
        for number, whole in enumerate(wholes):
            what = f"set {number + 1} of {len(wholes)}"
            for batch, some, _ in sweep(whole, loop, self.device, between, what):
                hq = batch.images[:some].to(self.device, non_blocking=True)
                with autocast(self.config.engine, self.device):
                    reconstruction, posterior = network(hq)
                pictures = {"hq": to_uint8(hq), "reconstruction": to_uint8(reconstruction)}
                averages.add(self.judges(pictures["reconstruction"], pictures["hq"]))
                moments = posterior.mean, posterior.mean.square(), posterior.std
                channels += torch.stack([m.double().mean((2, 3)).sum(0) for m in moments])
                count += some
                if number == 0:  # sets may differ in the size of their images
                    gallery.add(pictures, batch.keys[:some])
        metrics = averages.over_ranks(self.device)
        return Validation({**metrics, **self._statistics(channels, count)}, gallery.grid())

    def _statistics(self, channels: Tensor, count: int) -> dict[str, float]:
        """Average over ranks; ``channels`` holds sums of mean, square of it, and sigma."""
        total, *rest = sums([count, *channels.flatten().tolist()], str(self.device))
        mean, square, sigma = torch.tensor(rest).div(total).view(3, -1)
        std = (square - mean.square()).clamp(min=0).sqrt()
        return {
            "posterior_sigma": sigma.mean().item(),
            "latent_mean": mean.mean().item(),
            "latent_std": std.mean().item(),
            "latent_std_least": std.min().item(),
            "latent_std_most": std.max().item(),
        }

    def flops_per_sample(self) -> int:
        """Count forward and backward of the autoencoder, and VGG on both images and back once."""
        side = self.config.crop
        vae = flops_of(SimVAE, self.network.config, (1, 3, side, side))
        vgg = 0
        if self.loss.perceptual is not None:
            layers = tuple(self.loss.perceptual.layers)
            vgg = flops_of(_Features, layers, (1, 3, side, side))
        return 3 * (vae + vgg)

    def data(self) -> list[tuple[str, str, str, str]]:
        """Name the image sets."""
        sets = zip(self.config.data, self.sets, strict=True)
        return [named(path, images) for path, images in sets]

    def networks(self) -> dict[str, str]:
        """Name VGG19, if the loss has its term."""
        return {"vgg": self._vgg} if self._vgg else {}

    def facts(self) -> dict[str, Any]:
        """Tell what validation judges, and by what."""
        if not self.held_out:
            return {}
        judged = judged_on(self._wholes, self.config.loop, self.judges.identities())
        return {"validation": judged}

    @property
    def _wholes(self) -> list[Crops]:
        """The held-out images, whole, of each set."""
        return [Crops([images], crop=None, flip=False) for images in self.held_out]

    def restoring(self) -> None:
        """Tell nothing: it restores by itself no picture, only as a part of a flow."""

    def export(self, network: nn.Module, run: Finished) -> FinishedModel:
        """Write the folder that `models.vae.folder.load_sim_vae` and diffusers' users read."""
        assert isinstance(network, SimVAE)
        folder = work_folder(self.config.loop) / EXPORT
        save_sim_vae(network, folder)
        images, latents = (-1, 3, -1, -1), (-1, network.latent_channels, -1, -1)
        return FinishedModel(
            name="sim-vae",
            folder=folder,
            digest=weights_digest(network.state_dict()),
            facts={"trained_with": self.networks()} if self._vgg else {},
            inputs={"images": images},
            outputs={"reconstruction": images, "mean": latents, "logvar": latents},
            use=f"{self.config.model}: `pipelines.encode --vae FOLDER`, or `load_sim_vae(FOLDER)` "
            "of `models.vae.folder`. Images are in [-1, 1].",
        )


class _Features(nn.Module):
    """VGG19 as a module of one argument."""

    def __init__(self, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.vgg, self.layers = VGG19(), layers

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the features."""
        features: dict[str, Tensor] = self.vgg(images, self.layers)
        return features
