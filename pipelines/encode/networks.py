"""The frozen networks at work: images -> latents, LQ -> posterior mean, latents -> images.

One process computes with one thread: workers are one per core or one per GPU already, and how a sum
is split among threads would show in its last bits.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets.decoding import single_threaded
from datasets.degradation.parameters import DegradationParameters, degradation_preset
from datasets.degradation.reference import draw_parameters
from infra.errors import UsageError, UserError
from models.checkpoint import CheckpointError
from models.frozen import Identity, load_posterior_mean, load_regressor, load_vae
from models.metrics.fidelity import to_uint8
from models.predictor.swinir import SwinIR
from models.rectified_flow import regress
from models.vae.autoencoder import Posterior
from models.vae.public import PublicVAE
from models.vae.sim_vae import SimVAE
from models.velocity.looformer import LooUFormer
from pipelines.encode.config import EncodeRule

LIVE_MAPS = 6  # feature maps of the first stage that are alive at once, generously
SHARE_OF_MEMORY = 0.5  # of the GPU, for feature maps
LARGEST_BATCH = 32

Image = npt.NDArray[np.float32]
Latent = npt.NDArray[np.float32]


class Encoded(NamedTuple):
    """One latent, and how sure the encoder was of it."""

    latent: Latent
    """float32 [C, h, w]."""
    variance: npt.NDArray[np.float64]
    """Of the posterior: mean over each channel, [C]."""


class Encoder:
    """The networks, loaded on one device.

    Args:
        rule: which, where and how.

    Attributes:
        device: that they compute on.
        vae: the autoencoder.
        identity: as `identity` returns it.

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
        self.identity = identity(rule, models)
        self.vae = models.vae.to(self.device)
        self.vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs
        self.predictor = None if models.predictor is None else models.predictor.to(self.device)
        self.regressor = None if models.regressor is None else models.regressor.to(self.device)

    def tensor(self, images: Sequence[Image]) -> Tensor:
        """Images [H, W, 3] in [0, 1] => [B, 3, H, W] on the device."""
        batch = torch.from_numpy(np.stack(images)).to(self.device)  # in memory: channels last
        return batch.permute(0, 3, 1, 2)

    def parameters(self, key: str, draw: int) -> DegradationParameters:
        """Draw the degradation number ``draw`` of a sample."""
        return parameters(self.rule, key, draw)

    def restored(self, lq: Tensor) -> Tensor:
        """LQ [B, 3, H, W] in [0, 1] => what the source latent is the encoding of, the same."""
        if self.rule.source == "lq":
            return lq
        assert self.predictor is not None
        return self.predictor.posterior_mean(lq.contiguous())

    def encode(
        self, images: Tensor, names: Sequence[str], *, regressed: bool = False
    ) -> list[Encoded]:
        """Encode images.

        Args:
            images: [B, 3, H, W] in [0, 1].
            names: of the latents: they seed the posterior's noise, and are named in errors.
            regressed: whether the latents pass the regressor, if there is one: sources do.

        Raises:
            UserError: a latent that is not finite.
        """
        posterior = self.posterior(images)
        latent = posterior.mode()
        if self.rule.posterior == "sample":
            latent = posterior.sample(noise=self._noise(names, latent))
        if regressed:
            latent = self.regressed(latent)
        finite = latent.isfinite().flatten(1).all(1).tolist()
        for name, is_finite in zip(names, finite, strict=True):
            if not is_finite:
                raise UserError(
                    f"{name}: the latent is not finite; do the weights of --vae, --predictor and "
                    "--regressor belong to their networks? A low --precision can overflow too"
                )
        variance = posterior.std.double().square().mean((2, 3))
        pairs = zip(latent.cpu().numpy(), variance.cpu().numpy(), strict=True)
        return [Encoded(*pair) for pair in pairs]

    @torch.no_grad()
    def posterior(self, images: Tensor) -> Posterior:
        """Return q(z | x) in float32 of images [B, 3, H, W] in [0, 1]."""
        images = to_model_range(images).contiguous(memory_format=torch.channels_last)
        half = self.rule.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            mean, logvar = self.vae.encode(images)
        return Posterior(mean.float().contiguous(), logvar.float().contiguous())

    @torch.no_grad()
    def regressed(self, latent: Tensor) -> Tensor:
        """E(posterior mean) => x_0, both [B, C, h, w]: what the regressor, if any, makes of it."""
        return latent if self.regressor is None else regress(self.regressor, latent)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Latents [B, C, h, w] => images [B, 3, H, W], clipped to [0, 1]."""
        images: Tensor = (self.vae.decode(latent) + 1) / 2
        return images.clamp(0, 1)

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
    regressor: LooUFormer | None
    identities: dict[str, Identity]
    """By the name of the option; of those that are there."""


def load_models(rule: EncodeRule) -> Models:
    """Load the networks that ``rule`` names, on the CPU.

    Raises:
        UsageError: says which option, which file, and where to get it.
    """
    predictor = regressor = None
    identities = {}
    option = f"--vae {rule.vae}"
    try:
        vae, identities["vae"] = load_vae(rule.vae)
        if rule.source != "lq":
            option = f"--predictor {rule.predictor}"
            predictor, identities["predictor"] = load_posterior_mean(rule.predictor)
        if rule.source == "regressed":
            option = f"--regressor {rule.regressor}"
            regressor, identities["regressor"] = load_regressor(rule.regressor)
    except (CheckpointError, OSError) as error:
        raise UsageError(f"{option}: {error}") from error
    return Models(vae, predictor, regressor, identities)


def identity(rule: EncodeRule, models: Models) -> dict[str, Any]:
    """Return what two latents of one image must share to be the same; JSON values.

    A regressor is named only where there is one: sets of the other sources, also those that were
    made before it could be given, are what they were.
    """
    made_from: dict[str, Any] = {"vae": None, "vae_config": None}
    made_from |= {"predictor": None, "predictor_config": None}
    for name, network in models.identities.items():
        made_from |= {name: network.weights, f"{name}_config": dict(network.config)}
    fields = ("source", "posterior", "seed", "precision")
    return {
        **made_from,
        **{name: getattr(rule, name) for name in fields},
        "degradation": asdict(degradation_preset(rule.degradation)),
    }


def parameters(rule: EncodeRule, key: str, draw: int) -> DegradationParameters:
    """Draw the degradation number ``draw`` of a sample, a function of (preset, seed, key, draw)."""
    preset = degradation_preset(rule.degradation)
    return draw_parameters(preset, seed=rule.seed, key=key, draw=draw)


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


def levels(images: Tensor) -> Tensor:
    """[0, 1] => uint8, of the same shape."""
    return to_uint8(to_model_range(images))
