"""What `trainers/flow.py` is told, and its presets."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass

from datasets.degradation.parameters import PRESETS as DEGRADATIONS
from datasets.degradation.parameters import degradation_preset
from infra.cli import choices
from infra.config import STRICT
from models.ema import EMAConfig
from models.rectified_flow import TimeDistribution
from models.schedules import PRESETS as SCHEDULES
from models.schedules import Schedule
from models.velocity.hdit import PRESETS as PIXEL_MODELS
from models.velocity.looformer import PRESETS as LATENT_MODELS
from trainers.loop import config as loop_config
from trainers.loop.config import ChangesConfig, EngineConfig, LoopConfig, OptimizerConfig

Space = Literal["latent", "pixel"]
Source = Literal["posterior_mean", "regressed", "lq", "noise"]
DrawsFrom = Literal["cached", "online"]
Stage = Literal["flow", "regressor"]
PosteriorOf = Literal["sample", "mode"]


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class FlowConfig:
    """Which flow, on what, how."""

    latents: str = ""
    """Folder of a latent set, as pipelines.encode makes it; for --draws cached."""
    images: tuple[str, ...] = ()
    """Folders of image sets: for --draws online, and for validating on pictures (the first)."""
    vae: str = ""
    """The autoencoder, as pipelines.encode takes it; only a latent flow has one."""
    predictor: str = ""
    """The posterior-mean predictor, as pipelines.encode takes it."""
    regressor: str = ""
    """Folder `network` of a run of --stage regressor; for --source regressed, unless the latents
    are regressed already and no images are encoded here."""
    degradation: Annotated[str | None, choices("None", *DEGRADATIONS)] = None
    """Of what is degraded here; None: as the latents were made, and with --draws online pmrf."""
    model: Annotated[str, choices(*{**LATENT_MODELS, **PIXEL_MODELS})] = "latent-c32"
    """Velocity network; those whose names begin with pmrf are for pixels."""
    stage: Stage = "flow"
    """``regressor`` trains what predicts the posterior mean of latents instead."""
    space: Space = "latent"
    """Where the flow is: latents, or pixels in [0, 1] as in PMRF."""
    source: Source = "posterior_mean"
    """x_0: (the encoding of) the posterior mean, a regressed latent, the LQ image, or noise."""
    sigma_s: NonNegativeFloat = 0.1
    """Standard deviation of the noise added to x_0; the source ``noise`` is N(0, 1) by itself."""
    conditional: bool = False
    """Show the network the posterior mean, or its encoding, at every t."""
    draws: DrawsFrom = "cached"
    """Pairs of a latent set, or images degraded (and encoded) afresh at each visit."""
    posterior: PosteriorOf | None = None
    """What an encoding is, where images are encoded here, a sample or the mode; None: as the
    latents were made, and with --draws online a sample."""
    times: TimeDistribution = "stratified"
    """Distribution of t."""
    sampling_steps: PositiveInt = 25
    """Euler steps of a restoration, in validation."""
    alignment: Literal["ffhq", "any"] = "ffhq"
    """How the training images frame a face, as FFHQ's do or in any way; pipelines.restore asks."""
    lpips: str | None = None
    """Folder of LPIPS's two weights files; by default torch.hub's cache, and where they are not in
    it, validation is without LPIPS and says so."""
    dists: str | None = None
    """Folder of DISTS's weights files; without it, validation is without DISTS."""
    grid_images: PositiveInt = 6
    """Images in the pictures of a validation."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(max_steps=400_000))
    """How long, how often, where."""
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(precision="bf16"))
    """How a step is computed."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(betas=(0.9, 0.95)))
    """Adam's settings."""
    schedule: Schedule = SCHEDULES["flow"]
    """Learning rate by step."""
    ema: EMAConfig = field(default_factory=EMAConfig)
    """Averages of the weights."""
    changes: ChangesConfig = field(default_factory=ChangesConfig)
    """What is otherwise from some step on."""

    def __post_init__(self) -> None:
        if self.degradation is not None:
            degradation_preset(self.degradation)
        if self.space == "pixel" and (self.draws, self.stage) != ("online", "flow"):
            raise ValueError(
                f"space='pixel' with draws={self.draws!r}, stage={self.stage!r}: a flow of pixels "
                "is trained online, and needs no regressor; give --draws online --stage flow"
            )
        for name, folder in (("lpips", self.lpips), ("dists", self.dists)):
            if folder and not self.restores:
                raise ValueError(
                    f"{name}={folder!r} with images={self.images}, stage={self.stage!r}: it judges "
                    "restored pictures; give --images, and --stage flow"
                )
        if self.source == "regressed" and self.space == "pixel":
            raise ValueError("source='regressed': of latents only; a pixel's is the posterior mean")
        if self.regressor and self.source != "regressed":
            raise ValueError(
                f"regressor={self.regressor!r} with source={self.source!r}: it is applied for "
                "--source regressed only"
            )
        if self.stage == "regressor" and self.conditional:
            raise ValueError("conditional with stage='regressor': a regressor has no condition")
        if self.stage == "regressor" and self.source != "posterior_mean":
            raise ValueError(f"stage='regressor' with source={self.source!r}: posterior_mean only")

    @property
    def restores(self) -> bool:
        """Whether validation restores pictures."""
        return bool(self.images) and self.stage == "flow"

    def may_change(self, name: str) -> bool:
        """Tell whether a run may be resumed with another value of this dotted field."""
        files = ("latents", "images", "vae", "predictor", "regressor", "lpips", "dists")
        return name in (*files, "grid_images", "alignment") or loop_config.may_change(name)

    def required(self) -> dict[str, bool]:
        """Tell which files the configuration needs, and that are not given.

        Whether cached latents still need a regressor is known when they are opened.
        """
        is_online, is_latent = self.draws == "online", self.space == "latent"
        computes = is_online or bool(self.images)
        needs_mean = self.source in ("posterior_mean", "regressed") or self.conditional
        return {
            "latents": not is_online and not self.latents,
            "images": is_online and not self.images,
            "vae": computes and is_latent and not self.vae,
            "predictor": computes and needs_mean and not self.predictor,
            "regressor": computes and self.source == "regressed" and not self.regressor,
        }


def _pmrf(steps: int, batch: int) -> FlowConfig:
    """Return PMRF, a flow of pixels, as its authors train it: by AdamW at a constant rate."""
    return FlowConfig(
        space="pixel",
        draws="online",
        model="pmrf-512",
        loop=LoopConfig(max_steps=steps),
        engine=EngineConfig(global_batch_size=batch, precision="bf16", gradient_clipping=0.0),
        ema=EMAConfig(warmup="torch_ema"),
    )


def _table3(model: str) -> FlowConfig:
    """Return a row of Table 3, whose numbers are likely those of shorter runs than Table 4's."""
    return FlowConfig(
        model=model,
        loop=LoopConfig(max_steps=200_000),
        engine=EngineConfig(global_batch_size=32, precision="bf16"),
    )


def _portraits(space: Literal["latent", "pixel"], model: str) -> FlowConfig:
    """Return a flow of the paper in small: tests/experiments/README.md."""
    return FlowConfig(
        space=space,
        draws="cached" if space == "latent" else "online",
        model=model,
        degradation="pmrf-128",
        loop=LoopConfig(max_steps=2_000, validate_every=250, save_every=250),
        engine=EngineConfig(global_batch_size=16),
        schedule=Schedule(peak=2e-3, warmup_steps=100, floor=1e-5, cosine_steps=1_900),
        ema=EMAConfig(decays=(0.999,)),
    )


PRESETS = {  # on CelebA-Test: PSNR / LPIPS
    "latent-pmrf": FlowConfig(),  # 26.3887 / 0.2207 (Table 4)
    "pmrf": _pmrf(1_051_050, 256),  # 26.3321 / 0.2232 (Table 4)
    "pmrf-star": _pmrf(400_000, 64),  # 26.6431 / 0.2407 (Table 4)
    "elir-source": FlowConfig(source="regressed"),  # ELIR's source; the paper has no number
    "table3-c16": _table3("latent-c16"),  # 26.4412 / 0.2191
    "table3-c24": _table3("latent-c24"),  # 26.3911 / 0.2251
    "table3-c48": _table3("latent-c48"),  # 26.4600 / 0.2264
    "tiny": FlowConfig(  # on 34 held-out portraits LPIPS 0.21, where the posterior mean has 0.36
        model="small-c8",
        degradation="pmrf-128",
        alignment="any",
        loop=LoopConfig(max_steps=1_000, validate_every=250, save_every=250),
        engine=EngineConfig(global_batch_size=16),
        schedule=Schedule(peak=2e-3, warmup_steps=50, floor=1e-5, cosine_steps=950),
        ema=EMAConfig(decays=(0.99,)),
    ),
    "portraits128": _portraits("latent", "small-c8"),
    "portraits128-pmrf": _portraits("pixel", "small-128"),
}
