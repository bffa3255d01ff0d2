"""What latents are made by; light, so that a command line can be checked without PyTorch."""

from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from datasets.degradation.parameters import PRESETS as DEGRADATIONS
from datasets.degradation.parameters import degradation_preset
from datasets.latent_format import LatentType
from infra.cli import choices
from infra.config import STRICT, from_dict, merged
from pipelines.jobs.paths import absolute, absolute_if_there

STATE = ".encode"
"""Folder of a set with the state of its job."""
Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class EncodeRule:
    """What latents are a function of, beside the images; and where it is computed."""

    vae: str = ""
    """Folder of an autoencoder; or sd15-f8c4, sdxl-f8c4, flux-f8c16, alone or as NAME=FOLDER."""
    predictor: str = ""
    """The posterior-mean predictor: DifFace's file, or a checkpoint of ours; not for lq."""
    regressor: str = ""
    """Folder `network` of a run of trainers/flow.py --stage regressor; for --source regressed."""
    source: Literal["posterior_mean", "regressed", "lq"] = "posterior_mean"
    """posterior_mean: x_0 = E(posterior mean of LQ); regressed: x_0 = g(E(posterior mean)), with
    the regressor g; lq: x_0 = E(LQ), without a predictor."""
    posterior: Literal["mode", "sample"] = "mode"
    """mode or sample of the encoder's Gaussian; a sample is drawn once and stored."""
    degradation: Annotated[str, choices(*DEGRADATIONS)] = "pmrf"
    """What makes LQ of HQ."""
    seed: int = 0
    """Of the draws, and of the posterior's noise."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the VAE: bfloat16 is autocast; tf32: of all networks' products, on NVIDIA GPUs. On these
    bfloat16 is recommended, as in --preset gpu: by count 3 ms a latent on an H100, not 20."""
    predictor_precision: Literal["float32", "bfloat16"] = "float32"
    """Of the predictor; with --precision tf32, float32 is that. Whatever is below float32 is
    compared with it on 16 images, in the report and the manifest."""
    device: Device = "cuda"
    """cuda or cpu; the other never takes its place."""
    batch: PositiveInt | None = None
    """Images per forward pass; by default 1 on a CPU, on a GPU what half of its memory holds."""

    def __post_init__(self) -> None:
        if self.precision == "tf32" and self.device == "cpu":
            raise ValueError("precision 'tf32': a format of NVIDIA GPUs; on a CPU take float32")
        if self.regressor and self.source != "regressed":
            raise ValueError(
                f"regressor {self.regressor} with source {self.source}: it is applied for "
                "--source regressed only"
            )
        degradation_preset(self.degradation)


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class EncodeConfig:
    """What to encode, with what, into what."""

    input: str = ""
    """Folder of an image set, as pipelines.curate makes them."""
    output: str = ""
    """Folder of the latent set; made if it is not there."""
    rule: EncodeRule = field(default_factory=EncodeRule)
    """From images to latents."""
    draws: PositiveInt = 1
    """Degradations of each image, K; more than a set has extends it."""
    dtype: LatentType = "float16"
    """float16, float32, or uint8 with a scale for each channel."""
    reuse: str = ""
    """Folder of an earlier latent set: of an image that has not changed, latents that depend on
    nothing that has are copied from there, bit for bit."""
    keep_images: bool = False
    """Store LQ and posterior mean too, as PNG."""
    limit: PositiveInt | None = None
    """Take only the first N samples: for a trial."""
    samples_per_shard: PositiveInt = 256
    """Image samples in a shard."""
    gpus: PositiveInt | None = None
    """GPUs, one worker each; by default all of the Ray cluster."""
    workers: PositiveInt | None = None
    """Workers on CPUs, one core each; by default every CPU of the Ray cluster."""
    track: bool = True
    """Log the run to MLflow (MLFLOW_TRACKING_URI, by default sqlite:///mlflow.db)."""
    overwrite: bool = False
    """Replace a set that another configuration made in the output folder."""
    dry_run: bool = False
    """Time an image, say hours and GB, write nothing."""

    def __post_init__(self) -> None:
        if self.gpus is not None and self.rule.device == "cpu":
            raise ValueError(f"gpus {self.gpus} with device cpu: on CPUs give workers")

    def absolute(self) -> "EncodeConfig":
        """Return the same job with every path absolute, for processes that work elsewhere."""
        rule = replace(
            self.rule,
            vae=absolute_if_there(self.rule.vae),
            predictor=absolute_if_there(self.rule.predictor),
            regressor=absolute_if_there(self.rule.regressor),
        )
        return replace(
            self,
            input=absolute(self.input),
            output=absolute(self.output),
            reuse=absolute(self.reuse),
            rule=rule,
        )


PRESETS = {
    "paper": EncodeConfig(),  # the authors sample the posterior; see pipelines/README.md
    "authors": EncodeConfig(rule=EncodeRule(posterior="sample")),
    "elir-source": EncodeConfig(rule=EncodeRule(source="regressed")),
    "gpu": EncodeConfig(rule=EncodeRule(precision="bfloat16", predictor_precision="bfloat16")),
    "cpu": EncodeConfig(rule=EncodeRule(device="cpu")),
    "tiny": EncodeConfig(  # images of 128 pixels
        rule=EncodeRule(device="cpu", degradation="pmrf-128"), draws=8
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class VerifyConfig:
    """What to verify, and how deeply."""

    repair: bool = False
    """First make damaged files again from the image set, byte for byte, and nothing else."""
    recompute: NonNegativeInt = 0
    """Samples whose latents are computed again from their pixels and stored draws."""
    input: str = ""
    """The image set; by default the one that the set was made from."""
    vae: str = ""
    """By default the one that the set was made with."""
    predictor: str = ""
    """By default the one that the set was made with."""
    regressor: str = ""
    """By default the one that the set was made with."""
    device: Device | None = None
    """By default that of the run."""

    def over(self, saved: dict[str, Any]) -> EncodeConfig:
        """Return the configuration that a set was made with, changed to what is given here.

        Args:
            saved: the set's config.json.

        Raises:
            UsageError: what does not go together, such as a regressor and a set without one.
        """
        rule = self._given("vae", "predictor", "regressor", "device")
        changed = merged(saved, {**self._given("input"), "rule": rule})
        return from_dict(EncodeConfig, changed, "the set's config.json, changed to what is given")

    def _given(self, *names: str) -> dict[str, str]:
        return {name: value for name in names if (value := getattr(self, name))}
