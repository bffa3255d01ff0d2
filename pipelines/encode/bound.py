"""The distortion bound: what a few images lose by encoding alone, measured before any training.

x is an image, flipped or gray as its draw has it, and x_hat the posterior mean of that draw. The
PSNR of D(E(x)) against x is about the best that a restoration can reach; ||D(E(x_hat)) - x_hat|| is
how far the start of a latent flow is from the posterior mean. Both take the mode of the encoder's
posterior, and no regressor g. With a regressor the flow starts from g(E(x_hat)), and there are two
more numbers: the PSNR of D(g(E(x_hat))) against x; and ||g(E(x_hat)) - E(x)|| divided by ||E(x_hat)
- E(x)||, which g was trained to make small. If that is 1 or more, g was trained for other latents.

Where a network computes below float32, the same networks in float32 say what that costs: the root
mean square difference of the posterior mean, in levels of 255, and of E(x) and E(x_hat), in
standard deviations of the latent in float32. That of E(x_hat) has the predictor's part in it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.decoding import encode_png
from datasets.degradation.batched import degrade_batch
from datasets.reading.image_set import ImageSample, ImageSet
from infra.config import pretty_json
from infra.paths import AnyPath, path_of, write_bytes
from models.metrics.fidelity import psnr
from models.ranges import unit_to_uint8
from pipelines.encode.config import EncodeRule
from pipelines.encode.networks import Encoder
from pipelines.encode.sums import ChannelSums, latent_sums
from pipelines.jobs.stage import Stopwatch

IMAGES = 16
SHOWN = 6  # images whose pictures the report shows
PICTURES = ("hq", "lq", "posterior_mean", "hq_decoded", "posterior_mean_decoded")
REGRESSED = "regressed_decoded"
RESULT = "probe.json"


class Probe:
    """The worker that measures what encoding does to some images, and writes it to a file.

    Args:
        rule: the networks, as for the encoding.
        images: folder of the image set.
        folder: folder for the result and the pictures.
        networks: identity that the networks must have.
    """

    def __init__(
        self, rule: EncodeRule, images: str, folder: str, networks: Mapping[str, Any]
    ) -> None:
        self.encoder = Encoder(rule, networks)
        self.images = path_of(images)
        self.folder = path_of(folder)
        self.watch = Stopwatch()

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Measure the images of ``unit["rows"]``; the result is written last."""
        sums = ChannelSums(self.encoder.vae.latent_channels)
        images, found = ImageSet(self.images), []
        for number, sample in enumerate(images.samples(unit["rows"])):
            with self.watch("probe"):
                measured, pictures = self._measure(sample, sums)
            found.append(measured)
            if number < SHOWN:
                for name, picture in pictures.items():
                    pixels = unit_to_uint8(picture)[0].permute(1, 2, 0).cpu().numpy()
                    write_bytes(picture_path(self.folder, number, name), encode_png(pixels))
        result = {"images": found, "sums": sums.to_json()}
        write_bytes(self.folder / RESULT, pretty_json(result))
        return {"done": len(found), "seconds": self.watch.take()}

    def _measure(
        self, sample: ImageSample, sums: ChannelSums
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return one image's numbers and pictures, and add its latents to ``sums``."""
        parameters = self.encoder.parameters(sample.key, 0)
        (pair,) = degrade_batch([sample.image], [parameters], self.encoder.device)
        lq, hq = self.encoder.tensor([pair.lq]), self.encoder.tensor([pair.hq])
        restorer = self.encoder.restorer
        posterior_mean = restorer.posterior_mean(lq)
        decoded, modes = [], []
        for name, image in {"target": hq, "source": posterior_mean}.items():
            names = [f"{sample.key}.{name}"]
            (encoded,) = self.encoder.encode(image, names, is_source=name == "source")
            sums.add(latent_sums(encoded.latent, encoded.variance, encoded.latent))
            modes.append(restorer.posterior(image).mode())
            decoded.append(restorer.image(modes[-1]))
        pictures = dict(zip(PICTURES, (hq, lq, posterior_mean, *decoded), strict=True))
        measured = {
            "key": sample.key,
            "severity": parameters.severity,
            "psnr_hq_decoded": _psnr(decoded[0], hq),
            "psnr_posterior_mean": _psnr(posterior_mean, hq),
            "psnr_posterior_mean_decoded": _psnr(decoded[1], posterior_mean),
            "rmse_posterior_mean_decoded": _rmse(decoded[1], posterior_mean),
            "psnr_restored_by_decoding": _psnr(decoded[1], hq),
        }
        if not self.encoder.is_exact:
            measured |= self._lost(hq, lq, posterior_mean, modes)
        if restorer.regressor is not None:
            regressed = restorer.regressed(modes[1])
            pictures[REGRESSED] = restorer.image(regressed)
            measured["psnr_regressed_decoded"] = _psnr(pictures[REGRESSED], hq)
            errors = [float((latent - modes[0]).norm()) for latent in (regressed, modes[1])]
            measured["regressed_error"] = errors[0] / errors[1] if errors[1] else 1.0
        return measured, pictures

    def _lost(
        self, hq: Tensor, lq: Tensor, posterior_mean: Tensor, modes: Sequence[Tensor]
    ) -> dict[str, float]:
        """Return how far one image's posterior mean and latents are from those of float32."""
        with self.encoder.in_float32() as exact:
            mean = exact.posterior_mean(lq)
            latents = [exact.posterior(image).mode() for image in (hq, mean)]
        of_target, of_source = (
            float((found - latent).double().square().mean().sqrt() / latent.double().std())
            for found, latent in zip(modes, latents, strict=True)
        )
        return {
            "rmse_posterior_mean_by_precision": _rmse(posterior_mean, mean),
            "target_error_by_precision": of_target,
            "source_error_by_precision": of_source,
        }


def bound(result: dict[str, Any]) -> dict[str, Any]:
    """Average the numbers of a probe: the manifest's `distortion` entry."""
    images = result["images"]
    names = [name for name, value in images[0].items() if isinstance(value, float)]
    means = {name: float(np.mean([image[name] for image in images])) for name in names}
    return {"images": len(images), "keys": [image["key"] for image in images], **means}


def picture_path(folder: AnyPath, number: int, name: str) -> AnyPath:
    """Return the path of a picture of the probe."""
    return folder / f"{number}-{name}.png"


def _psnr(images: Tensor, reference: Tensor) -> float:
    return float(psnr(unit_to_uint8(images), unit_to_uint8(reference))[0])


@torch.no_grad()
def _rmse(images: Tensor, reference: Tensor) -> float:
    """Root mean squared error in levels of 255."""
    return float((images - reference).double().square().mean().sqrt() * 255)
