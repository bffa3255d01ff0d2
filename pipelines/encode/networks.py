"""The frozen networks in a worker: loaded on its device, and from images to latents with names.

The steps themselves are `models.restorer`'s. One process computes with one thread: workers are one
per core or one per GPU already, and how a sum is split among threads would show in its last bits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets.degradation.parameters import DegradationParameters, degradation_preset
from datasets.degradation.reference import draw_parameters
from infra.config import differences, flat
from infra.copies import at_hand
from infra.errors import UsageError, UserError
from models.checkpoint import CheckpointError
from models.frozen import Identity, load_posterior_mean, load_regressor, load_vae
from models.noise import NamedNoise, Purpose
from models.predictor.swinir import SwinIR
from models.restorer import RestorationRule, Restorer
from models.vae.public import PublicVAE
from models.vae.sim_vae import SimVAE
from models.velocity.looformer import LooUFormer
from pipelines.encode.config import EncodeRule
from pipelines.jobs.folder import plain
from pipelines.jobs.kernels import same_in_every_run

LIVE_MAPS = 6  # feature maps of the first stage that are alive at once, generously
SHARE_OF_MEMORY = 0.5  # of the GPU, for feature maps
LARGEST_BATCH = 32
NOISE = "philox"  # of `models.noise`; sampled sets that do not say are of Mersenne twisters

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
        expected: the `identity` that they must have, as JSON values; None takes any. Workers start
            at any time, and somebody may have replaced a network since the job began.

    Attributes:
        device: that they compute on.
        vae: the autoencoder.
        restorer: all the networks, at work.
        identity: as `identity` returns it.

    Raises:
        UsageError: weights that are not at hand, or a device that is not there.
        UserError: other weights than expected.
    """

    def __init__(self, rule: EncodeRule, expected: Mapping[str, Any] | None = None) -> None:
        same_in_every_run(1, tf32=rule.precision == "tf32")
        if rule.device == "cuda" and not torch.cuda.is_available():
            raise UsageError(
                "--device cuda: no GPU here; give --device cpu (--dry-run says how slowly)"
            )
        self.rule = rule
        self.device = torch.device(rule.device)
        models = load_models(rule)
        self.identity = identity(rule, models)
        if expected is not None and (changed := _changes(self.identity, expected)):
            raise UserError(
                f"networks were replaced while the job ran ({'; '.join(changed)}); bring back "
                "those that it began with and run the same command again, or encode anew with "
                "--overwrite"
            )
        self.vae = models.vae.to(self.device)
        predictor, regressor = models.predictor, models.regressor
        self.restorer = Restorer(
            RestorationRule(source=rule.source, posterior=rule.posterior, precision=rule.precision),
            vae=self.vae,
            predictor=None if predictor is None else predictor.to(self.device),
            regressor=None if regressor is None else regressor.to(self.device),
        )

    def tensor(self, images: Sequence[Image]) -> Tensor:
        """Images [H, W, 3] in [0, 1] => [B, 3, H, W] on the device."""
        batch = torch.from_numpy(np.stack(images)).to(self.device)  # in memory: channels last
        return batch.permute(0, 3, 1, 2)

    def parameters(self, key: str, draw: int) -> DegradationParameters:
        """Draw the degradation number ``draw`` of a sample."""
        return parameters(self.rule, key, draw)

    def encode(
        self, images: Tensor, names: Sequence[str], *, is_source: bool = False
    ) -> list[Encoded]:
        """Encode images.

        Args:
            images: [B, 3, H, W] in [0, 1].
            names: of the latents: they seed the posterior's noise, and are named in errors.
            is_source: whether the flow starts from these latents: then a regressor, if there is
                one, is applied to them.

        Raises:
            UserError: a latent that is not finite.
        """
        posterior = self.restorer.posterior(images)
        purpose = Purpose.SOURCE_POSTERIOR if is_source else Purpose.TARGET_POSTERIOR
        latent = self.restorer.latent(posterior, NamedNoise(self.rule.seed, names), purpose)
        if is_source:
            latent = self.restorer.regressed(latent)
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
        vae, identities["vae"] = load_vae(at_hand(rule.vae))
        if rule.source != "lq":
            option = f"--predictor {rule.predictor}"
            predictor, identities["predictor"] = load_posterior_mean(at_hand(rule.predictor))
        if rule.source == "regressed":
            option = f"--regressor {rule.regressor}"
            regressor, identities["regressor"] = load_regressor(at_hand(rule.regressor))
    except (CheckpointError, OSError) as error:
        raise UsageError(f"{option}: {error}") from error
    return Models(vae, predictor, regressor, identities)


def identity(rule: EncodeRule, models: Models) -> dict[str, Any]:
    """Return what two latents of one image must share to be the same; JSON values.

    A regressor is named only where there is one, and how noise is drawn where there is noise: other
    sets, also those that were made before, are what they were.
    """
    made_from: dict[str, Any] = {"vae": None, "vae_config": None}
    made_from |= {"predictor": None, "predictor_config": None}
    for name, network in models.identities.items():
        made_from |= {name: network.weights, f"{name}_config": dict(network.config)}
    if rule.posterior == "sample":
        made_from["noise"] = NOISE
    fields = ("source", "posterior", "seed", "precision")
    return {
        **made_from,
        **{name: getattr(rule, name) for name in fields},
        "degradation": asdict(degradation_preset(rule.degradation)),
    }


def _changes(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    return differences(flat(plain(found)), flat(expected))


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
