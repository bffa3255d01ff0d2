"""What latents are made by; light, so that a command line can be checked without PyTorch."""

from dataclasses import dataclass

from datasets.degradation_parameters import degradation_preset

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
    """Preset of `datasets.degradation_parameters`."""
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
