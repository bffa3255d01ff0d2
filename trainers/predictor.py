"""Train the posterior-mean predictor, where the published one does not fit the data.

    deepspeed trainers/predictor.py --images sets/ffhq --output runs/predictor
    python -m trainers.predictor --preset tiny --images sets/faces --output runs/tiny

The published SwinIR is DifFace's: 300,000 steps of 32 images with an L1 loss, 0.54 TFLOP each:
5.2e18 in all. The preset `difface` is its recipe, without stochastic depth. The posterior mean
E[x | y] is what minimises the squared error (paper Sec. 3.1), so the default, `mse`, does that.
To resume, run the same command again. It ends with `OUTPUT/predictor`, the averaged weights and
their configuration: the --predictor of pipelines.encode and trainers/flow.py.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if __name__ == "__main__":  # run as a file, trainers/ is first on the path: put the root there
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from datasets.degradation_parameters import degradation_preset
from infra import cli
from infra.errors import UsageError
from models.ema import EMAConfig
from models.schedules import PRESETS as SCHEDULES
from models.schedules import Schedule
from models.swinir import preset
from trainers import loop_config
from trainers.engine_config import EngineConfig
from trainers.loop_config import LoopConfig, OptimizerConfig

if TYPE_CHECKING:
    import torch

    from trainers.task import Task

Error = Literal["mse", "l1"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorConfig:
    """Which predictor, on what, how."""

    images: tuple[str, ...] = ()
    """Folders of image sets, as pipelines.curate makes them; each visit degrades an image anew."""
    images_weights: tuple[float, ...] = ()
    """How often an epoch holds each image of each set; by default once."""
    degradation: str = "pmrf"
    """Preset of datasets.degradation_parameters."""
    model: str = "swinir_L"
    """Name in models.swinir.PRESETS."""
    error: Error = "mse"
    """What is minimised: ``mse`` gives the posterior mean, ``l1`` what DifFace's weights are."""
    lpips: str | None = None
    """Folder of LPIPS's two weights files; by default torch.hub's cache, and where they are not in
    it, validation is without LPIPS and says so."""
    grid_images: int = 6
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

    def __post_init__(self) -> None:
        preset(self.model)
        degradation_preset(self.degradation)
        if self.error not in get_args(Error):
            raise ValueError(f"error={self.error!r}: choose one of {get_args(Error)}")
        if self.images_weights and len(self.images_weights) != len(self.images):
            raise ValueError(
                f"images_weights={self.images_weights} for {len(self.images)} sets: give one each"
            )
        if self.grid_images < 1:
            raise ValueError(f"grid_images={self.grid_images}: at least 1")

    def may_change(self, name: str) -> bool:
        """Tell whether a run may be resumed with another value of this dotted field."""
        return name in ("images", "lpips", "grid_images") or loop_config.may_change(name)


PRESETS = {
    "mse": PredictorConfig(),  # E[x | y]; no number is published
    "difface": PredictorConfig(error="l1"),  # the published weights' recipe
    "tiny": PredictorConfig(  # 23.2 dB where LQ has 23.3, but LPIPS 0.51 for its 0.58 (faces)
        degradation="pmrf-128",
        model="small",
        loop=LoopConfig(max_steps=2_000, validate_every=500, save_every=500),
        engine=EngineConfig(global_batch_size=8),
        schedule=Schedule(peak=2e-3, warmup_steps=50, floor=2e-5, cosine_steps=1_950),
        ema=EMAConfig(decays=(0.99,)),
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    config = cli.parse(PredictorConfig, PRESETS, arguments, "trainers.predictor", __doc__ or "")
    if not config.images:
        raise UsageError("no --images; give the folders of image sets")
    return train(config)


def train(config: PredictorConfig) -> int:
    """Train; returns the exit code."""
    from trainers import loop

    return loop.run(config, lambda device: build(config, device))


def build(config: PredictorConfig, device: "torch.device") -> "Task":
    """Make the task on this rank's device."""
    from trainers.predictor_task import PredictorTask

    return PredictorTask(config, device)


if __name__ == "__main__":
    cli.run(main)
