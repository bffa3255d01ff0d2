"""Encoding of image samples: they are degraded, predicted, encoded and written as latent shards.

Which images share a call of a network follows from the plan alone: ``batch`` neighbours of one
shard, of one draw. So neither the number of workers or of draws nor a resumed run changes a bit of
a latent. An image whose latents are copied from an earlier set is left out of the batches, which
its neighbours fill; where a batch is one image, as on a CPU, that changes no bit either.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from datasets.degradation.batched import degrade_batch
from datasets.degradation.reference import Degraded, to_float
from datasets.latent_format import LatentFormat, image_extensions
from datasets.reading.image_set import ImageSample, ImageSet, Row
from datasets.shards import save_record, write_shard
from infra.ahead import map_ahead, once
from infra.config import from_dict
from infra.errors import UserError
from infra.paths import path_of
from models.ranges import unit_to_uint8
from pipelines.encode.config import EncodeRule
from pipelines.encode.members import Computed, GenerationSpec, Packer
from pipelines.encode.networks import Encoder, Image, batch_size
from pipelines.encode.reuse import TARGETS, EarlierSet
from pipelines.jobs.plan import Plan, record_path
from pipelines.jobs.progress import tallied
from pipelines.jobs.stage import Stopwatch

COPIERS = 4  # threads that read what is copied, a sample each
PREPARERS_PER_GPU = 6  # threads that decode and degrade, since JPEG and noise are made on the CPU


class EncodeShard:
    """The worker that writes one shard of the plan.

    A shard is done when its record exists and its tar has the recorded length; a repeated unit
    writes the same bytes.
    """

    def __init__(self, spec: GenerationSpec, rule: EncodeRule) -> None:
        self.spec = spec
        self.encoder = Encoder(rule, spec.networks)
        self.latent = from_dict(LatentFormat, spec.latent)
        self.batch = batch_size(rule, self.encoder.vae, spec.size)
        self.threads = PREPARERS_PER_GPU if rule.device == "cuda" else 0
        self.draws = range(spec.first, spec.last)
        self.watch = Stopwatch()
        self.plan = Plan(path_of(spec.plan))

    @functools.cached_property
    def images(self) -> ImageSet:
        """Return the image set, opened by the first unit, whose errors reach the user."""
        return ImageSet(path_of(self.spec.images))

    @functools.cached_property
    def earlier(self) -> EarlierSet | None:
        """Return the set that latents are copied from, if any; opened as `images`."""
        if self.spec.reuse is None:
            return None
        return EarlierSet(self.spec.reuse, self.latent, keep_images=self.spec.keep_images)

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Write shard ``unit["name"]`` from row group ``unit["row_group"]`` beside the plan."""
        path, rows = self.plan.of(unit)
        self.parameters = functools.cache(self.encoder.parameters)
        self.packer = Packer(self.spec, self.images, self.latent, self.parameters, self.earlier)
        try:
            shard = write_shard(
                path, self.watch.between("write", tallied(path, self.samples(rows)))
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{unit['name']}: the GPU's memory does not hold a batch of {self.batch} images; "
                "give a smaller --batch"
            ) from error
        computed = {"batch": self.batch, "device": device_name(self.encoder.device)}
        self.packer.save_statistics(path, computed)
        save_record(record_path(path), shard)
        return {"done": shard.samples, "seconds": self.watch.take()}

    def samples(self, rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Encode the rows' images and draws, ``batch`` at a time; yields tar members."""
        with self.watch("compare"):
            self.packer.find_copies(rows)
        groups = list(self._groups(rows))
        calls = self._preparations(groups)
        prepared = map_ahead(operator.call, calls, threads=self.threads)
        copiers = COPIERS if self.earlier is not None else 0
        copies = map_ahead(self.packer.read_copies, rows, threads=copiers)
        for group in groups:
            samples = next(prepared)[0]
            computed = Computed(labels={sample.key: sample.label for sample in samples})
            if self.spec.first == 0:
                self._targets(samples, computed)
            for number in self.draws:
                self._draw(number, next(prepared), computed)
            for row in group:
                with self.watch("pack"):
                    packed = self.packer.pack(row, computed, next(copies))
                yield row["key"], packed

    def _groups(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Group neighbouring rows, at most ``batch`` new ones in a group."""
        group: list[Row] = []
        new = 0
        for row in rows:
            if new == self.batch and self.packer.is_new(row):
                yield group
                group, new = [], 0
            group.append(row)
            new += self.packer.is_new(row)
        yield group

    def _preparations(self, groups: Sequence[Sequence[Row]]) -> "Iterator[Callable[[], _Prepared]]":
        """Yield what the CPU does, in order: load the images of a group, then degrade each draw."""
        for group in groups:
            load = once(functools.partial(self._load, group))
            yield lambda load=load: (load(), [])  # type: ignore[misc]  # mypy cannot infer it
            for number in self.draws:
                yield functools.partial(self._degrade, load, number)

    def _load(self, rows: Sequence[Row]) -> list[ImageSample]:
        with self.watch("read"):
            return list(self.images.samples([row for row in rows if self.packer.is_new(row)]))

    def _degrade(self, load: Callable[[], list[ImageSample]], number: int) -> "_Prepared":
        samples = [s for s in load() if self.packer.lacks(s.key, f"source_{number}")]
        if not samples:
            return [], []
        with self.watch("degrade"):
            parameters = [self.parameters(sample.key, number) for sample in samples]
            images = [sample.image for sample in samples]
            return samples, degrade_batch(images, parameters, self.encoder.device)

    def _targets(self, samples: Sequence[ImageSample], computed: Computed) -> None:
        """Encode HQ as it is and flipped."""
        for flip, name in enumerate(TARGETS):
            lacking = [sample for sample in samples if self.packer.lacks(sample.key, name)]
            images = [to_float(sample.image) for sample in lacking]
            turned = [np.ascontiguousarray(image[:, ::-1]) if flip else image for image in images]
            self._encode(turned, [f"{sample.key}.{name}" for sample in lacking], computed)

    def _draw(self, number: int, prepared: "_Prepared", computed: Computed) -> None:
        """Encode one draw of those samples of a group that lack it."""
        samples, degraded = prepared
        if not samples:
            return
        lq = self.encoder.tensor([pair.lq for pair in degraded])
        with self.watch("predict"):
            posterior_mean = self.encoder.restorer.posterior_mean(lq)
        names = [f"{sample.key}.source_{number}" for sample in samples]
        self._encode(posterior_mean, names, computed, is_source=True)
        gray = {
            f"{sample.key}.target_g{number}": pair.hq
            for sample, pair in zip(samples, degraded, strict=True)
            if pair.parameters.gray_target and self.packer.lacks(sample.key, f"target_g{number}")
        }
        self._encode(list(gray.values()), list(gray), computed)
        if self.spec.keep_images:
            kept = zip(image_extensions(number), (lq, posterior_mean), strict=True)
            for extension, images in kept:
                for sample, pixels in zip(samples, _pixels(images), strict=True):
                    computed.images[f"{sample.key}.{extension}"] = pixels

    def _encode(
        self,
        images: torch.Tensor | Sequence[Image],
        names: Sequence[str],
        computed: Computed,
        *,
        is_source: bool = False,
    ) -> None:
        """Encode images, if there are any, and keep the latents by name."""
        if not names:
            return
        batch = images if isinstance(images, torch.Tensor) else self.encoder.tensor(images)
        with self.watch("encode"):
            encoded = self.encoder.encode(batch, names, is_source=is_source)
        computed.latents.update(zip(names, encoded, strict=True))


_Prepared = tuple[list[ImageSample], list[Degraded]]


def _pixels(images: torch.Tensor) -> npt.NDArray[np.uint8]:
    """[B, 3, H, W] in [0, 1] => RGB uint8 [B, H, W, 3]."""
    return unit_to_uint8(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def device_name(device: torch.device) -> str:
    """Name the device that computed, for the manifest."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
