"""The dry run: what an encoding will cost and yield, from counted FLOPs and one timed image."""

import copy
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from datasets.degradation.batched import degrade_batch
from datasets.latent_format import NPY_HEADER
from datasets.reading.image_set import ImageSet
from datasets.shards import BLOCK
from infra.paths import path_of
from models.flops import counted
from models.rectified_flow import regress
from pipelines.encode.config import EncodeConfig, EncodeRule
from pipelines.encode.images import latent_shards
from pipelines.encode.job import Encoding
from pipelines.encode.networks import Encoder, batch_size, parameters
from pipelines.encode.reuse import TARGETS, EarlierSet
from pipelines.jobs.stage import Engine, Resources, started

REPEATS = 3
COMPARED = 128  # images, evenly spaced, that are looked up in the set of --reuse
JSON_BYTES = 2 * BLOCK  # about the header and the content of a sample's JSON


def estimate(config: EncodeConfig, engine: Engine | None = None) -> str:
    """Count the networks' operations, time one image, and scale by images and draws.

    One worker of the job counts and times, on the device that the job would use.

    Args:
        config: the resolved configuration.
        engine: what carries out the unit, and says how many workers there are; by default Ray.

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
    with started(engine, config.workers) as running:
        resources = encoding.resources(running)
        cost = _measured(encoding, running, resources)
        workers = running.workers(resources)
    shards = len(latent_shards(encoding.images.rows, config.samples_per_shard, {}))
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
    hours = seconds / min(workers, shards) / 3600
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
        f"  time      about {hours * 60:,.1f} minutes ({hours:,.2f} hours) with {workers} workers "
        f"for {shards:,} shards\n"
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The seconds and FLOPs that one image takes on one worker."""

    batch: int
    """Images in a pass."""
    encode: float
    """Seconds of one latent."""
    predict: float
    """Seconds of one posterior mean; next to none where the source needs none."""
    regress: float
    """Seconds of one regression; next to none where there is no regressor."""
    degrade: float
    """Seconds of one degradation."""
    encode_flops: int
    """Of one latent."""
    predict_flops: int
    """Of one posterior mean; 0 where the source needs none."""
    regress_flops: int
    """Of one regression; 0 where there is no regressor."""

    @property
    def rate(self) -> float:
        """FLOP a second while the networks compute."""
        total = self.encode + self.predict + self.regress
        flops = self.encode_flops + self.predict_flops + self.regress_flops
        return flops / total if total else 0.0


def _measured(encoding: Encoding, engine: Engine, resources: Resources) -> Cost:
    """Have one worker of the job measure an image."""
    (row,) = encoding.images.spread(1)
    arguments = (encoding.rule, encoding.networks, str(encoding.images.folder), encoding.shape)
    (result,) = engine.run("probe", [{"row": row}], MeasureImage, arguments, 1, resources)
    return Cost(**result["cost"])


class MeasureImage:
    """The worker that times the steps of one image, and counts the networks' operations.

    Args:
        rule: which networks, where and how.
        networks: their `identity`.
        images: folder of the image set.
        shape: of a latent, [C, h, w].
    """

    def __init__(
        self,
        rule: EncodeRule,
        networks: Mapping[str, Any],
        images: str,
        shape: tuple[int, int, int],
    ) -> None:
        self.rule = rule
        self.encoder = Encoder(rule, networks)
        self.images = images
        self.shape = shape

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Measure the image of row ``unit["row"]``; returns the values of a `Cost`."""
        images = ImageSet(path_of(self.images))
        sample = images.sample(unit["row"])
        encoder, restorer = self.encoder, self.encoder.restorer
        batch = batch_size(self.rule, encoder.vae, images.size)
        drawn = [encoder.parameters(sample.key, number) for number in range(batch)]
        pixels = [sample.image] * batch
        lq = encoder.tensor([pair.lq for pair in degrade_batch(pixels, drawn, encoder.device)])
        names = [sample.key] * batch
        latent = torch.zeros(batch, *self.shape, device=encoder.device)
        cost = Cost(
            batch=batch,
            encode=self._seconds(batch, lambda: encoder.encode(lq, names)),
            predict=self._seconds(batch, lambda: restorer.posterior_mean(lq)),
            regress=self._seconds(batch, lambda: restorer.regressed(latent)),
            degrade=self._seconds(batch, lambda: degrade_batch(pixels, drawn, encoder.device)),
            **self._flops(images.size),
        )
        return {"done": 1, "seconds": {}, "cost": asdict(cost)}

    def _flops(self, size: int) -> dict[str, int]:
        """Count the operations of each network for one image of ``size`` pixels."""
        restorer = self.encoder.restorer
        image = torch.empty(1, 3, size, size, device="meta")
        encode = counted(copy.deepcopy(self.encoder.vae).to("meta").encode, image)
        predict = regression = 0
        if restorer.predictor is not None:
            predict = counted(copy.deepcopy(restorer.predictor).to("meta"), image)
        if restorer.regressor is not None:
            regressor = copy.deepcopy(restorer.regressor).to("meta")
            latent = torch.empty(1, *self.shape, device="meta")
            regression = counted(lambda z: regress(regressor, z), latent)
        return {"encode_flops": encode, "predict_flops": predict, "regress_flops": regression}

    def _seconds(self, batch: int, work: Callable[[], object]) -> float:
        """Return the seconds of ``work`` for one image of the batch: the fastest, once warm."""
        seconds = []
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            work()
            if self.encoder.device.type == "cuda":
                torch.cuda.synchronize(self.encoder.device)
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:]) / batch
