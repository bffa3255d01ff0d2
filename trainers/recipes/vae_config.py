"""What `trainers/vae.py` is told, and its presets."""

from dataclasses import field
from typing import Annotated

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from infra.cli import choices
from infra.config import STRICT
from models.ema import EMAConfig
from models.losses import SimVAELossConfig
from models.schedules import PRESETS as SCHEDULES
from models.schedules import Schedule
from models.vae.sim_vae import PRESETS as MODELS
from models.vae.sim_vae import preset
from trainers.loop import config as loop_config
from trainers.loop.config import ChangesConfig, EngineConfig, LoopConfig, OptimizerConfig


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class VAEConfig:
    """Which autoencoder, on what, how."""

    data: tuple[str, ...] = ()
    """Folders of image sets, as pipelines.curate makes them."""
    data_weights: tuple[float, ...] = ()
    """How often an epoch holds each sample of each set; by default once."""
    model: Annotated[str, choices(*MODELS)] = "sim-vae-f8c32"
    """Autoencoder: f is the factor by which it is smaller, c the channels of its latents."""
    crop: PositiveInt = 256
    """Side of the training crops in pixels; validation takes whole images."""
    flip: bool = True
    """Mirror half of the crops."""
    vgg: str | None = None
    """File of VGG19's weights; by default torch.hub's cache. Not needed with --perceptual 0."""
    lpips: str | None = None
    """Folder of LPIPS's two weights files; by default torch.hub's cache, and where they are not in
    it, validation is without LPIPS and says so."""
    grid_images: PositiveInt = 6
    """Images in the pictures of a validation."""
    loss: SimVAELossConfig = field(default_factory=SimVAELossConfig)
    """Weights of the loss."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """How long, how often, where."""
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(gradient_clipping=0.0))
    """How a step is computed."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(betas=(0.9, 0.999), weight_decay=0.0)
    )
    """Adam's settings."""
    schedule: Schedule = SCHEDULES["sim-vae"]
    """Learning rate by step."""
    ema: EMAConfig = field(default_factory=EMAConfig)
    """Averages of the weights."""
    changes: ChangesConfig = field(default_factory=ChangesConfig)
    """What is otherwise from some step on."""

    def __post_init__(self) -> None:
        factor = 1 << (len(preset(self.model).block_out_channels) - 1)
        if self.crop % factor:
            raise ValueError(f"crop={self.crop}: {self.model} needs a multiple of {factor}")
        if self.data_weights and len(self.data_weights) != len(self.data):
            raise ValueError(
                f"data_weights={self.data_weights} for {len(self.data)} sets: give one for each"
            )

    def may_change(self, name: str) -> bool:
        """Tell whether a run may be resumed with another value of this dotted field."""
        return name in ("data", "vgg", "lpips", "grid_images") or loop_config.may_change(name)


PRESETS = {
    "paper": VAEConfig(),  # 42.71 dB, LPIPS 0.0073 (Table 3); the text: Adam's own parameters
    "authors": VAEConfig(  # the released file instead: the rate still at 1.6e-5 when it stops
        engine=EngineConfig(gradient_clipping=1.0),
        optimizer=OptimizerConfig(),
        schedule=SCHEDULES["sim-vae-authors"],
    ),
    "tiny": VAEConfig(  # 32.0 dB on 34 held-out portraits of 128 pixels, ten minutes on one core
        model="small-f4c8",
        crop=64,
        loss=SimVAELossConfig(perceptual=0.0),
        loop=LoopConfig(max_steps=2_000, validate_every=500, save_every=500),
        engine=EngineConfig(global_batch_size=16),
        schedule=Schedule(peak=3e-3, warmup_steps=50, floor=1e-4, cosine_steps=1_950),
        ema=EMAConfig(decays=(0.99,)),
    ),
    "portraits128": VAEConfig(  # the paper in small: tests/experiments/README.md
        model="small-f4c8",
        crop=64,
        loss=SimVAELossConfig(perceptual=0.0),
        loop=LoopConfig(max_steps=4_000, validate_every=500, save_every=500),
        # without clipping, and at three times the rate, it diverges after 1,400 steps
        engine=EngineConfig(global_batch_size=16, gradient_clipping=1.0),
        schedule=Schedule(peak=1e-3, warmup_steps=100, floor=1e-5, cosine_steps=3_900),
        ema=EMAConfig(decays=(0.999,)),
    ),
}
