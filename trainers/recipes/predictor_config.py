"""What `trainers/predictor.py` is told, and its presets."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from datasets.degradation.parameters import PRESETS as DEGRADATIONS
from datasets.degradation.parameters import degradation_preset
from infra.cli import choices
from infra.config import STRICT
from models.ema import EMAConfig
from models.predictor.swinir import PRESETS as MODELS
from models.predictor.swinir import preset
from models.schedules import PRESETS as SCHEDULES
from models.schedules import Schedule
from trainers.loop import config as loop_config
from trainers.loop.config import ChangesConfig, EngineConfig, LoopConfig, OptimizerConfig


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class PredictorConfig:
    """Which predictor, on what, how."""

    images: tuple[str, ...] = ()
    """Folders of image sets, as pipelines.curate makes them; each visit degrades an image anew."""
    images_weights: tuple[float, ...] = ()
    """How often an epoch holds each image of each set; by default once."""
    degradation: Annotated[str, choices(*DEGRADATIONS)] = "pmrf"
    """What makes LQ of HQ."""
    model: Annotated[str, choices(*MODELS)] = "swinir_L"
    """SwinIR's size; swinir_L is that of the published weights."""
    error: Literal["mse", "l1"] = "mse"
    """What is minimised: ``mse`` gives the posterior mean, ``l1`` what DifFace's weights are."""
    lpips: str | None = None
    """Folder of LPIPS's two weights files; by default torch.hub's cache, and where they are not in
    it, validation is without LPIPS and says so."""
    grid_images: PositiveInt = 6
    """Images in the pictures of a validation."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(max_steps=300_000))
    """How long, how often, where."""
    engine: EngineConfig = field(
        default_factory=lambda: EngineConfig(global_batch_size=32, gradient_clipping=0.0)
    )
    """How a step is computed."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(betas=(0.9, 0.999), weight_decay=0.0)
    )
    """Adam's settings."""
    schedule: Schedule = SCHEDULES["predictor"]
    """Learning rate by step."""
    ema: EMAConfig = field(default_factory=EMAConfig)
    """Averages of the weights."""
    changes: ChangesConfig = field(default_factory=ChangesConfig)
    """What is otherwise from some step on."""

    def __post_init__(self) -> None:
        preset(self.model)
        degradation_preset(self.degradation)
        if self.images_weights and len(self.images_weights) != len(self.images):
            raise ValueError(
                f"images_weights={self.images_weights} for {len(self.images)} sets: give one each"
            )

    def may_change(self, name: str) -> bool:
        """Tell whether a run may be resumed with another value of this dotted field."""
        return name in ("images", "lpips", "grid_images") or loop_config.may_change(name)


PRESETS = {
    "mse": PredictorConfig(),  # E[x | y]; no number is published
    "difface": PredictorConfig(error="l1"),  # the published weights' recipe
    "tiny": PredictorConfig(  # on 34 held-out portraits 23.0 dB, LPIPS 0.36; LQ has 22.3, 0.49
        degradation="pmrf-128",
        model="small",
        loop=LoopConfig(max_steps=2_000, validate_every=500, save_every=500),
        engine=EngineConfig(global_batch_size=8),
        schedule=Schedule(peak=2e-3, warmup_steps=50, floor=2e-5, cosine_steps=1_950),
        ema=EMAConfig(decays=(0.99,)),
    ),
    "portraits128": PredictorConfig(  # the paper in small: tests/experiments/README.md
        degradation="pmrf-128",
        model="small",
        loop=LoopConfig(max_steps=6_000, validate_every=500, save_every=500),
        engine=EngineConfig(global_batch_size=8),
        schedule=Schedule(peak=2e-3, warmup_steps=100, floor=2e-5, cosine_steps=5_900),
        ema=EMAConfig(decays=(0.999,)),
    ),
}
