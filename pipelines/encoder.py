"""The frozen networks at work: images -> latents, LQ -> posterior mean, latents -> images.

One process computes with one thread: workers are one per core or one per GPU already, and how a sum
is split among threads would show in its last bits.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets.degradation import DegradationParameters, draw_parameters
from datasets.degradation_parameters import degradation_preset
from infra.errors import UsageError, UserError
from models.autoencoder import Posterior
from models.checkpoint import CheckpointError
from models.frozen import Identity, load_posterior_mean, load_vae
from models.public_vae import PublicVAE
from models.sim_vae import SimVAE
from models.swinir import SwinIR
from pipelines.crop import single_threaded

SOURCES = ("posterior_mean", "lq")
POSTERIORS = ("mode", "sample")
PRECISIONS = ("float32", "tf32", "bfloat16")
LIVE_MAPS = 6  # feature maps of the first stage that are alive at once, generously
SHARE_OF_MEMORY = 0.5  # of the GPU, for feature maps
LARGEST_BATCH = 32

Image = npt.NDArray[np.float32]
Latent = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeRule:
    """What latents are a function of, beside the images; and where it is computed."""

    vae: str
    """As `models.frozen.load_vae` takes it."""
    predictor: str | None
    """As `models.frozen.load_posterior_mean` takes it; None where no source needs it."""
    source: str = "posterior_mean"
    """posterior_mean: x_0 = E(posterior mean of LQ); lq: x_0 = E(LQ)."""
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
            "device": ("cuda", "cpu"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}: choose {' or '.join(allowed)}")
        if self.precision == "tf32" and self.device == "cpu":
            raise ValueError("precision 'tf32': a format of NVIDIA GPUs; on a CPU take float32")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch {self.batch}: at least 1")
        degradation_preset(self.degradation)


class Encoded(NamedTuple):
    """Latents, and how sure the encoder was of them."""

    latent: Latent
    """float32 [B, C, h, w]."""
    variance: npt.NDArray[np.float64]
    """Of the posterior: mean over each channel, [B, C]."""


class Encoder:
    """Both networks, loaded on one device.

    Args:
        rule: which, where and how.

    Attributes:
        device: that they compute on.
        vae: the autoencoder.

    Raises:
        UsageError: weights that are not at hand, or a device that is not there.
    """

    def __init__(self, rule: EncodeRule) -> None:
        single_threaded()
        torch.set_num_threads(1)
        if rule.device == "cuda" and not torch.cuda.is_available():
            raise UsageError(
                "--device cuda: no GPU here; give --device cpu (--dry-run says how slowly)"
            )
        # no trials of algorithms, whose winner differs from run to run
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        tf32 = rule.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        self.rule = rule
        self.device = torch.device(rule.device)
        models = load_models(rule)
        self.vae = models.vae.to(self.device, memory_format=torch.channels_last)
        self.predictor = None if models.predictor is None else models.predictor.to(self.device)

    def tensor(self, images: Sequence[Image]) -> Tensor:
        """Images [H, W, 3] in [0, 1] => [B, 3, H, W] on the device."""
        batch = torch.from_numpy(np.stack(images)).to(self.device)  # in memory: channels last
        return batch.permute(0, 3, 1, 2)

    def parameters(self, key: str, draw: int) -> DegradationParameters:
        """Draw the degradation number ``draw`` of a sample."""
        preset = degradation_preset(self.rule.degradation)
        return draw_parameters(preset, seed=self.rule.seed, key=key, draw=draw)

    def restored(self, lq: Tensor) -> Tensor:
        """LQ [B, 3, H, W] in [0, 1] => what the source latent is the encoding of, the same."""
        if self.rule.source == "lq":
            return lq
        assert self.predictor is not None
        return self.predictor.posterior_mean(lq.contiguous())

    def encode(self, images: Tensor, names: Sequence[str]) -> Encoded:
        """Encode images.

        Args:
            images: [B, 3, H, W] in [0, 1].
            names: of the latents: they seed the posterior's noise, and are named in errors.

        Raises:
            UserError: a latent that is not finite.
        """
        posterior = self.posterior(images)
        latent = posterior.mode()
        if self.rule.posterior == "sample":
            latent = posterior.sample(noise=self._noise(names, latent))
        finite = latent.isfinite().flatten(1).all(1).tolist()
        for name, is_finite in zip(names, finite, strict=True):
            if not is_finite:
                raise UserError(
                    f"{name}: the latent is not finite; do the weights of --vae and --predictor "
                    "belong to their networks? A low --precision can overflow too"
                )
        variance = posterior.std.double().square().mean((2, 3))
        return Encoded(latent.cpu().numpy(), variance.cpu().numpy())

    @torch.no_grad()
    def posterior(self, images: Tensor) -> Posterior:
        """Return q(z | x) in float32 of images [B, 3, H, W] in [0, 1]."""
        images = to_model_range(images).contiguous(memory_format=torch.channels_last)
        half = self.rule.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            mean, logvar = self.vae.encode(images)
        return Posterior(mean.float().contiguous(), logvar.float().contiguous())

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Latents [B, C, h, w] => images [B, 3, H, W], clipped to [0, 1]."""
        return ((self.vae.decode(latent) + 1) / 2).clamp(0, 1)

    def _noise(self, names: Sequence[str], like: Tensor) -> Tensor:
        """Draw standard normal noise, for each latent by (seed, its name)."""
        fields = []
        for name in names:
            hashed = hashlib.sha256(f"{self.rule.seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(hashed[:8], "big"))
            fields.append(torch.randn(like.shape[1:], generator=generator))
        return torch.stack(fields)


class Models(NamedTuple):
    """The networks of a rule, and what tells them from others."""

    vae: SimVAE | PublicVAE
    predictor: SwinIR | None
    vae_identity: Identity
    predictor_identity: Identity | None


def load_models(rule: EncodeRule) -> Models:
    """Load the networks that ``rule`` names, on the CPU.

    Raises:
        UsageError: says which option, which file, and where to get it.
    """
    predictor = predictor_identity = None
    option = f"--vae {rule.vae}"
    try:
        vae, vae_identity = load_vae(rule.vae)
        if rule.predictor is not None:
            option = f"--predictor {rule.predictor}"
            predictor, predictor_identity = load_posterior_mean(rule.predictor)
    except (CheckpointError, OSError) as error:
        raise UsageError(f"{option}: {error}") from error
    return Models(vae, predictor, vae_identity, predictor_identity)


def identity(rule: EncodeRule, models: Models) -> dict[str, Any]:
    """Return what two latents of one image must share to be the same; JSON values."""
    made_from = {
        "vae": models.vae_identity.weights,
        "vae_config": dict(models.vae_identity.config),
        "predictor": None,
        "predictor_config": None,
    }
    if models.predictor_identity is not None:
        made_from["predictor"] = models.predictor_identity.weights
        made_from["predictor_config"] = dict(models.predictor_identity.config)
    fields = ("source", "posterior", "seed", "precision", "device")
    return {
        **made_from,
        **{name: getattr(rule, name) for name in fields},
        "degradation": asdict(degradation_preset(rule.degradation)),
    }


def batch_size(rule: EncodeRule, vae: SimVAE | PublicVAE, size: int) -> int:
    """Choose how many images pass at once.

    The rule where none is given: on a CPU one, since one image's feature maps already exceed the
    caches; on a GPU the power of two, at most 32, whose `LIVE_MAPS` float32 feature maps of the
    first stage fit into half of its memory.
    """
    if rule.batch is not None or rule.device == "cpu":
        return rule.batch or 1
    config = vae.vae.config if isinstance(vae, PublicVAE) else vae.config
    per_image = LIVE_MAPS * 4 * config.block_out_channels[0] * size * size
    memory = torch.cuda.get_device_properties(0).total_memory
    fitting = int(SHARE_OF_MEMORY * memory) // per_image
    return min(LARGEST_BATCH, 1 << max(0, fitting.bit_length() - 1))


def to_model_range(images: Tensor) -> Tensor:
    """[0, 1] => [-1, 1]."""
    return images * 2 - 1


def to_uint8(images: Tensor) -> npt.NDArray[np.uint8]:
    """[B, 3, H, W] in [0, 1] => RGB uint8 [B, H, W, 3]."""
    levels = (images * 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
