"""What latents are made by; light, so that a command line can be checked without PyTorch."""

from dataclasses import dataclass, fields, replace
from typing import Any

from datasets.degradation.parameters import degradation_preset
from datasets.latent_format import DTYPES
from infra.errors import UsageError

SOURCES = ("posterior_mean", "regressed", "lq")
POSTERIORS = ("mode", "sample")
PRECISIONS = ("float32", "tf32", "bfloat16")
DEVICES = ("cuda", "cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeRule:
    """What latents are a function of, beside the images; and where it is computed."""

    vae: str
    """As `models.frozen.load_vae` takes it."""
    predictor: str | None
    """As `models.frozen.load_posterior_mean` takes it; None where no source needs it."""
    regressor: str | None = None
    """As `models.frozen.load_regressor` takes it; None where the source is not regressed."""
    source: str = "posterior_mean"
    """posterior_mean: x_0 = E(posterior mean of LQ); regressed: g of that; lq: x_0 = E(LQ)."""
    posterior: str = "mode"
    """mode or sample of the encoder's Gaussian."""
    degradation: str = "pmrf"
    """Preset of `datasets.degradation.parameters`."""
    seed: int = 0
    """Of the draws, and of the posterior's noise."""
    precision: str = "float32"
    """float32; tf32: in products on NVIDIA GPUs; bfloat16: autocast, of the VAE alone."""
    device: str = "cuda"
    """cuda or cpu."""
    batch: int | None = None
    """Images per forward pass; None: `batch_size`."""

    def __post_init__(self) -> None:
        choices = {
            "source": SOURCES,
            "posterior": POSTERIORS,
            "precision": PRECISIONS,
            "device": DEVICES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} {getattr(self, name)!r}: choose one of {', '.join(allowed)}"
                )
        if self.precision == "tf32" and self.device == "cpu":
            raise ValueError("precision 'tf32': a format of NVIDIA GPUs; on a CPU take float32")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch {self.batch}: at least 1")
        degradation_preset(self.degradation)


RULE_FIELDS = ("source", "posterior", "degradation", "seed", "precision", "device", "batch")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeConfig:
    """What to encode, with what, into what."""

    input: str = ""
    """Folder of an image set, as pipelines.curate makes them."""
    output: str = ""
    """Folder of the latent set; made if it is not there."""
    vae: str = ""
    """Folder of an autoencoder; or sd15-f8c4, sdxl-f8c4, flux-f8c16, alone or as NAME=FOLDER."""
    predictor: str = ""
    """The posterior-mean predictor: DifFace's file, or a checkpoint of ours."""
    regressor: str = ""
    """Folder `network` of a run of trainers/flow.py --stage regressor; for --source regressed."""
    draws: int = 1
    """Degradations of each image, K; more than a set has extends it."""
    degradation: str = "pmrf"
    """Preset of datasets.degradation.parameters."""
    source: str = "posterior_mean"
    """posterior_mean: x_0 = E(posterior mean of LQ); regressed: x_0 = g(E(posterior mean)), with
    the regressor g; lq: x_0 = E(LQ), without a predictor."""
    posterior: str = "mode"
    """mode or sample of the encoder's Gaussian; a sample is drawn once and stored."""
    dtype: str = "float16"
    """float16, float32, or uint8 with a scale for each channel."""
    precision: str = "float32"
    """Of the networks: float32; tf32; bfloat16 (autocast of the VAE)."""
    reuse: str = ""
    """Folder of an earlier latent set: of an image that has not changed, latents that depend on
    nothing that has are copied from there, bit for bit."""
    keep_images: bool = False
    """Store LQ and posterior mean too, as PNG."""
    seed: int = 0
    """Of the draws, and of the posterior's noise."""
    limit: int | None = None
    """Take only the first N samples: for a trial."""
    samples_per_shard: int = 256
    """Image samples in a shard."""
    device: str = "cuda"
    """cuda or cpu; the other never takes its place."""
    gpus: int | None = None
    """GPUs, one worker each; by default all of the Ray cluster."""
    workers: int | None = None
    """Workers on CPUs, one core each; by default every CPU of the Ray cluster."""
    batch: int | None = None
    """Images per forward pass; by default 1 on a CPU, on a GPU what half of its memory holds."""
    track: bool = True
    """Log the run to MLflow (MLFLOW_TRACKING_URI, by default sqlite:///mlflow.db)."""
    overwrite: bool = False
    """Replace a set that another configuration made in the output folder."""
    dry_run: bool = False
    """Time an image, say hours and GB, write nothing."""

    def __post_init__(self) -> None:
        for name in ("draws", "limit", "samples_per_shard", "gpus", "workers", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: at least 1")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r}: choose one of {', '.join(DTYPES)}")
        if self.gpus is not None and self.device == "cpu":
            raise ValueError(f"gpus {self.gpus} with device cpu: on CPUs give workers")
        if self.regressor and self.source != "regressed":
            raise ValueError(
                f"regressor {self.regressor} with source {self.source}: it is applied for "
                "--source regressed only"
            )
        self.rule()

    def rule(self) -> EncodeRule:
        """Return the part that makes latents from images."""
        return EncodeRule(
            vae=self.vae,
            predictor=None if self.source == "lq" else self.predictor,
            regressor=self.regressor if self.source == "regressed" else None,
            **{name: getattr(self, name) for name in RULE_FIELDS},
        )


PRESETS = {
    "paper": EncodeConfig(),  # the authors sample the posterior; see README, "Encode"
    "authors": EncodeConfig(posterior="sample"),
    "elir-source": EncodeConfig(source="regressed"),
    "cpu": EncodeConfig(device="cpu"),
    "tiny": EncodeConfig(device="cpu", degradation="pmrf-128", draws=8),  # images of 128 pixels
}


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """What to verify, and how deeply."""

    recompute: int = 0
    """Samples whose latents are computed again from their pixels and stored draws."""
    input: str = ""
    """The image set; by default the one that the set was made from."""
    vae: str = ""
    """By default the one that the set was made with."""
    predictor: str = ""
    """By default the one that the set was made with."""
    regressor: str = ""
    """By default the one that the set was made with."""
    device: str = ""
    """By default that of the run."""

    def __post_init__(self) -> None:
        if self.recompute < 0:
            raise ValueError(f"recompute {self.recompute}: at least 0")

    def over(self, config: EncodeConfig) -> EncodeConfig:
        """Return the set's configuration with what is given here in its place.

        Raises:
            UsageError: what does not go together, such as a regressor and a set without one.
        """
        names = [field.name for field in fields(self) if field.name != "recompute"]
        given = {name: getattr(self, name) for name in names if getattr(self, name)}
        changes: dict[str, Any] = given
        try:
            return replace(config, **changes)
        except ValueError as error:
            raise UsageError(str(error)) from error
