"""The dry run: what an encoding will cost and yield, from counted FLOPs and one timed image."""

import copy
import functools
import math
import os
import time
from collections.abc import Callable

import numpy as np
import torch

from datasets.degradation.batched import degrade_batch
from datasets.latent_format import NPY_HEADER
from datasets.shards import BLOCK
from models.flops import counted
from models.rectified_flow import regress
from pipelines.encode.config import EncodeConfig
from pipelines.encode.job import Encoding
from pipelines.encode.networks import Encoder, batch_size, parameters
from pipelines.encode.reuse import TARGETS, EarlierSet

REPEATS = 3
COMPARED = 128  # images, evenly spaced, that are looked up in the set of --reuse
JSON_BYTES = 2 * BLOCK  # about the header and the content of a sample's JSON


def estimate(config: EncodeConfig) -> str:
    """Count the networks' operations, time one image, and scale by images and draws.

    Returns:
        Lines for the user. Nothing is written.

    Raises:
        UsageError: as the run itself would.
    """
    encoding = Encoding(config)
    encoding.set.check()
    encoding.check()
    manifest = encoding.published()
    done = 0 if manifest is None else manifest["draws"]
    draws, images = config.draws - done, len(encoding.images.rows)
    cost = _Cost(encoding)
    targets = 2 * images if done == 0 else 0
    sources = draws * images
    values = math.prod(encoding.shape)
    member = NPY_HEADER + values * np.dtype(config.dtype).itemsize
    size = (targets + sources) * (member + BLOCK) + sources * JSON_BYTES
    copied, said = _reuse(encoding, range(done, config.draws))
    targets -= round(copied[0] * images)
    sources -= round(copied[1] * images)
    seconds = (targets + sources) * cost.encode
    seconds += sources * (cost.degrade + cost.predict + cost.regress)
    flops = (targets + sources) * cost.encode_flops
    flops += sources * (cost.predict_flops + cost.regress_flops)
    regressor = config.rule.source == "regressed"
    if config.rule.device == "cuda":
        workers = config.gpus or torch.cuda.device_count()
    else:
        workers = config.workers or os.cpu_count() or 1
    hours = seconds / workers / 3600
    return (
        f"{images:,} images of {encoding.images.size} pixels, {draws} draws to encode"
        f"{f' ({done} are there)' if done else ''}\n"
        f"{said}"
        f"  latents   {list(encoding.shape)} in {config.dtype}: about {size / 1e9:.2f} GB"
        f"{', and the images kept' if config.keep_images else ''}\n"
        f"  networks  {cost.encode_flops / 1e12:.3f} TFLOP a latent, "
        f"{cost.predict_flops / 1e12:.3f} a posterior mean"
        f"{f', {cost.regress_flops / 1e12:.3f} a regressed latent' if regressor else ''}; "
        f"{flops / 1e15:.3g} PFLOP in all, "
        f"{cost.rate / 1e9:,.0f} GFLOP/s measured\n"
        f"  measured  {cost.encode:.3f} s a latent, {cost.predict:.3f} s a posterior mean, "
        f"{f'{cost.regress:.3f} s a regression, ' if regressor else ''}"
        f"{cost.degrade:.3f} s a degradation, on one worker ({config.rule.device}), "
        f"batch {cost.batch}\n"
        f"  time      about {hours * 60:,.1f} minutes ({hours:,.2f} hours) with {workers} workers\n"
        "nothing was written\n"
    )


def _reuse(encoding: Encoding, draws: range) -> tuple[tuple[float, float], str]:
    """Estimate what --reuse saves: targets and sources of an image that are copied, and a line.

    Some images stand for all, evenly spaced.
    """
    if encoding.config.dtype == "uint8" and encoding.config.reuse:
        return (0, 0), "  reuse     not counted: the 8-bit levels are laid by the run itself\n"
    latent = encoding.latent_format({})
    reuse, said = encoding.reuse(latent)
    if reuse is None:
        return (0, 0), said
    rows = encoding.images.spread(COMPARED)
    hashes = {label["key"]: label["sha256"] for label in encoding.images.labels(rows)}
    earlier = EarlierSet(reuse, latent, keep_images=encoding.config.keep_images)
    found = earlier.find(hashes, draws, functools.partial(parameters, encoding.rule))
    names = [name for copies in found.values() for name in copies]
    targets = sum(name.removesuffix(".npy") in TARGETS for name in names) * (draws.start == 0)
    sources = sum(name.startswith("source_") for name in names)
    return (targets / len(rows), sources / len(rows)), (
        f"{said}  reuse     {targets:,} targets and {sources:,} sources of {len(rows):,} images "
        "looked at, and so of all\n"
    )


class _Cost:
    """The seconds and FLOPs that one image takes.

    Attributes:
        encode: seconds of one latent.
        predict: seconds of one posterior mean; 0 where the source needs none.
        regress: seconds of one regression; 0 where there is no regressor.
        degrade: seconds of one degradation.
        rate: FLOP a second while the networks compute.
    """

    def __init__(self, encoding: Encoding) -> None:
        encoder = Encoder(encoding.rule)
        restorer = encoder.restorer
        self.batch = batch_size(encoding.rule, encoder.vae, encoding.images.size)
        samples = [encoding.images.sample(row) for row in encoding.images.spread(1)] * self.batch
        drawn = [encoder.parameters(sample.key, number) for number, sample in enumerate(samples)]
        pixels = [sample.image for sample in samples]
        degraded = degrade_batch(pixels, drawn, encoder.device)
        lq = encoder.tensor([pair.lq for pair in degraded])
        names = [sample.key for sample in samples]
        self.encode = self._seconds(encoder, lambda: encoder.encode(lq, names))
        self.predict = self._seconds(encoder, lambda: restorer.posterior_mean(lq))
        latent = torch.zeros(self.batch, *encoding.shape, device=encoder.device)
        self.regress = self._seconds(encoder, lambda: restorer.regressed(latent))
        self.degrade = self._seconds(encoder, lambda: degrade_batch(pixels, drawn, encoder.device))
        image = torch.empty(1, 3, *[encoding.images.size] * 2, device="meta")
        self.encode_flops = counted(copy.deepcopy(encoder.vae).to("meta").encode, image)
        self.predict_flops = 0
        if restorer.predictor is not None:
            self.predict_flops = counted(copy.deepcopy(restorer.predictor).to("meta"), image)
        self.regress_flops = 0
        if restorer.regressor is not None:
            regressor = copy.deepcopy(restorer.regressor).to("meta")
            of_one = torch.empty(1, *encoding.shape, device="meta")
            self.regress_flops = counted(lambda z: regress(regressor, z), of_one)
        total = self.encode + self.predict + self.regress
        flops = self.encode_flops + self.predict_flops + self.regress_flops
        self.rate = flops / total if total else 0.0

    def _seconds(self, encoder: Encoder, work: Callable[[], object]) -> float:
        """Return the seconds of ``work`` for one image of the batch: the fastest, once warm."""
        seconds = []
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            work()
            if encoder.device.type == "cuda":
                torch.cuda.synchronize(encoder.device)
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:]) / self.batch
