"""Encode image shards into latent shards for the flow: `python -m pipelines.encode`.

    python -m pipelines.encode --input sets/ffhq --output latents/ffhq --vae sim-vae-c32/
        --predictor swinir_restoration512_L1.pth --draws 8
    python -m pipelines.encode ... --dry-run                     # hours and GB, nothing written
    python -m pipelines.encode ... --draws 16                    # later: adds 8, keeps the first 8
    python -m pipelines.encode ... --reuse latents/ffhq --output latents/ffhq-more  # copy the same
    python -m pipelines.encode verify latents/ffhq               # recompute every claim
    python -m pipelines.encode verify latents/ffhq --recompute 8 # and eight latents from pixels

Of every image: x_1 = E(HQ), as it is and flipped; and of each of K seeded degradations, LQ ->
SwinIR -> x_0 = E(posterior mean), with every parameter of the draw. To resume, run the same command
again.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from datasets.latent_format import DTYPES
from infra import cli
from infra.errors import UsageError
from infra.storage import local_path
from pipelines.encode_rule import EncodeRule

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
    """Preset of datasets.degradation_parameters."""
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


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    if arguments and arguments[0] == "verify":
        return verify(list(arguments[1:]))
    config = cli.parse(EncodeConfig, PRESETS, arguments, "pipelines.encode", __doc__ or "")
    needed = ["input", "output", "vae", *(["predictor"] * (config.source != "lq"))]
    needed += ["regressor"] * (config.source == "regressed")
    missing = [f"--{name}" for name in needed if not getattr(config, name)]
    if missing:
        raise UsageError(f"no {', '.join(missing)}; python -m pipelines.encode --help says what")
    if config.dry_run:
        from pipelines.encoding_estimate import estimate

        sys.stdout.write(estimate(config))
        return 0
    from pipelines.encoding import Encoding

    Encoding(config).run()
    return 0


def verify(arguments: list[str]) -> int:
    """Recompute every claim of a set; returns 1 and names what is wrong where, 0 if nothing is."""
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("usage: python -m pipelines.encode verify PATH [--recompute N ...]")
    folder = local_path(arguments[0])
    presets = {"default": VerifyConfig()}
    description = "Verify a latent set."
    config = cli.parse(VerifyConfig, presets, arguments[1:], "verify PATH", description)
    from pipelines.latent_verify import problems, recomputed

    found = 0
    for problem in problems(folder):
        sys.stdout.write(f"{problem}\n")
        found += 1
    if config.recompute and not found:
        for problem in recomputed(folder, config):
            sys.stdout.write(f"{problem}\n")
            found += 1
    sys.stdout.write(f"{folder}: {f'{found} problems' if found else 'everything agrees'}\n")
    return 1 if found else 0


if __name__ == "__main__":
    cli.run(main)
