"""The distortion bound, before any training: what a few images lose by encoding alone.

x is an image as one of its draws turned it, x_hat the posterior mean of that draw. D(E(x)) against
x says about what a restoration can reach; ||D(E(x_hat)) - x_hat|| is how far a latent flow starts
from the posterior mean that it should start from. Both by the mode of the posterior. Neither knows
a regressor g. With one, the flow starts from g(E(x_hat)), and two numbers more say what g does:
PSNR of D(g(E(x_hat))) against x; and ||g(E(x_hat)) - E(x)|| as a part of ||E(x_hat) - E(x)||, which
g was trained to make small: at 1 or above it was trained for other latents.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.decoding import encode_png
from datasets.degradation.batched import degrade_batch
from infra.config import pretty_json
from infra.storage import write_bytes
from models.metrics.fidelity import psnr
from models.ranges import unit_to_uint8
from pipelines.encode.config import EncodeRule
from pipelines.encode.images import read_sample
from pipelines.encode.networks import Encoder
from pipelines.encode.sums import ChannelSums, latent_sums
from pipelines.jobs.stage import Stopwatch

IMAGES = 16
SHOWN = 6  # whose pictures the report has
PICTURES = ("hq", "lq", "posterior_mean", "hq_decoded", "posterior_mean_decoded")
REGRESSED = "regressed_decoded"
RESULT = "probe.json"


class Probe:
    """The actor: rows of an image set in, what encoding does to them out, as a file.

    Args:
        rule: as for the encoding.
        images: folder of the image set.
        size: side of its images.
        folder: where the result and the pictures go.
    """

    def __init__(self, rule: EncodeRule, images: str, size: int, folder: str) -> None:
        self.encoder = Encoder(rule)
        self.images = Path(images)
        self.size = size
        self.folder = Path(folder)
        self.watch = Stopwatch()

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Probe ``unit["rows"]``; the result is written last."""
        sums = ChannelSums(self.encoder.vae.latent_channels)
        found = []
        for number, row in enumerate(unit["rows"]):
            with self.watch("probe"):
                measured, pictures = self._measure(row, sums)
            found.append(measured)
            if number < SHOWN:
                for name, picture in pictures.items():
                    pixels = unit_to_uint8(picture)[0].permute(1, 2, 0).cpu().numpy()
                    write_bytes(picture_path(self.folder, number, name), encode_png(pixels))
        result = {"images": found, "sums": sums.to_json()}
        write_bytes(self.folder / RESULT, pretty_json(result))
        return {"done": len(found), "seconds": self.watch.take()}

    def _measure(
        self, row: dict[str, Any], sums: ChannelSums
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return one image's numbers and pictures; counts its latents in ``sums``."""
        sample = read_sample(self.images, row, self.size)
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
        if restorer.regressor is not None:
            regressed = restorer.regressed(modes[1])
            pictures[REGRESSED] = restorer.image(regressed)
            measured["psnr_regressed_decoded"] = _psnr(pictures[REGRESSED], hq)
            errors = [float((latent - modes[0]).norm()) for latent in (regressed, modes[1])]
            measured["regressed_error"] = errors[0] / errors[1] if errors[1] else 1.0
        return measured, pictures


def bound(result: dict[str, Any]) -> dict[str, Any]:
    """Average the numbers of a probe: the manifest's `distortion` entry."""
    images = result["images"]
    names = [name for name, value in images[0].items() if isinstance(value, float)]
    means = {name: float(np.mean([image[name] for image in images])) for name in names}
    return {"images": len(images), "keys": [image["key"] for image in images], **means}


def picture_path(folder: Path, number: int, name: str) -> Path:
    """Return where a picture of the probe lies."""
    return folder / f"{number}-{name}.png"


def _psnr(images: Tensor, reference: Tensor) -> float:
    return float(psnr(unit_to_uint8(images), unit_to_uint8(reference))[0])


@torch.no_grad()
def _rmse(images: Tensor, reference: Tensor) -> float:
    """Root mean squared error in levels of 255."""
    return float((images - reference).double().square().mean().sqrt() * 255)
