"""Image samples -> latent shards: degrade, predict, encode, write the tar of one shard.

Every call of a network sees images that the plan alone chooses: of one shard, ``batch`` neighbours
at a time, one draw at a time. So neither workers nor a resumed run change what a call sees, nor
does the number of draws: the latents of draw k are the same bits whether it came alone or with
others.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from datasets.batched_degradation import degrade_batch
from datasets.decoding import encode_png
from datasets.degradation import Degraded
from datasets.latent_format import LatentDraw, LatentFormat, LatentSample, members
from datasets.shards import save_record, write_shard
from infra.config import from_dict, pretty_json, to_dict
from infra.errors import UserError
from infra.storage import write_bytes
from pipelines.ahead import in_order
from pipelines.encode_rule import EncodeRule
from pipelines.encoder import Encoded, Encoder, batch_size, levels
from pipelines.image_plan import ImageSample, read_sample
from pipelines.latent_statistics import ChannelSums, latent_values
from pipelines.pack import record_path
from pipelines.stage import Stopwatch

PREPARERS_PER_GPU = 6  # threads that decode and degrade: JPEG and noise stay on the CPU


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What every shard of a generation has in common."""

    plan: str
    """The plan's path; tars are written beside it."""
    images: str
    """Folder of the image set."""
    size: int
    """Side of every image in pixels."""
    first: int
    """First draw; 0: the targets too."""
    last: int
    """One after the last draw."""
    latent: Mapping[str, Any]
    """The `LatentFormat` as JSON values."""
    keep_images: bool
    """Whether LQ and posterior mean are stored too, as PNG."""


class EncodeShard:
    """The actor: one shard of the plan in, one durable tar out.

    A shard is done when its record exists and its tar has the recorded length; a repeated unit
    writes the same bytes.
    """

    def __init__(self, work: Work, rule: EncodeRule) -> None:
        self.work = work
        self.encoder = Encoder(rule)
        self.latent = from_dict(LatentFormat, work.latent)
        self.batch = batch_size(rule, self.encoder.vae, work.size)
        self.threads = PREPARERS_PER_GPU if rule.device == "cuda" else 0
        self.watch = Stopwatch()

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Write shard ``unit["name"]`` from row group ``unit["row_group"]`` beside the plan."""
        rows = pq.ParquetFile(self.work.plan).read_row_group(unit["row_group"]).to_pylist()
        path = Path(self.work.plan).with_name(unit["name"])
        self.sums = {name: ChannelSums(self.latent.channels) for name in ("target", "source")}
        try:
            shard = write_shard(path, self._timed(self.samples(rows)))
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{unit['name']}: the GPU's memory does not hold a batch of {self.batch} images; "
                "give a smaller --batch"
            ) from error
        made: dict[str, Any] = {name: sums.to_json() for name, sums in self.sums.items()}
        made |= {"batch": self.batch, "device": device_name(self.encoder.device)}
        write_bytes(statistics_path(path), pretty_json(made))
        save_record(record_path(path), shard)
        return {"done": shard.samples, "seconds": self.watch.take()}

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Encode the rows' images and draws, ``batch`` at a time; yields tar members."""
        groups = [rows[start : start + self.batch] for start in range(0, len(rows), self.batch)]
        prepared = in_order(self._preparations(groups), self.threads)
        draws = range(self.work.first, self.work.last)
        for _ in groups:
            samples = next(prepared)[0]
            targets = self._targets(samples) if self.work.first == 0 else None
            drawn = [self._draw(number, samples, next(prepared)[1]) for number in draws]
            for i, sample in enumerate(samples):
                both = None if targets is None else (targets[0][i], targets[1][i])
                images = {} if not self.work.keep_images else self._images(i, draws, drawn)
                with self.watch("pack"):
                    packed = self._pack(sample, both, [draw.latents[i] for draw in drawn])
                yield sample.key, {**packed, **images}

    def _preparations(
        self, groups: Sequence[Sequence[Mapping[str, Any]]]
    ) -> "Iterator[Callable[[], _Prepared]]":
        """List what the CPU does, in order: for each group its images, then each of its draws."""
        for group in groups:
            load = functools.cache(functools.partial(self._load, group))
            yield lambda load=load: (load(), [])  # type: ignore[misc]  # mypy cannot infer it
            for number in range(self.work.first, self.work.last):
                yield functools.partial(self._degrade, load, number)

    def _load(self, rows: Sequence[Mapping[str, Any]]) -> list[ImageSample]:
        with self.watch("read"):
            return [read_sample(Path(self.work.images), row, self.work.size) for row in rows]

    def _degrade(self, load: Callable[[], list[ImageSample]], number: int) -> "_Prepared":
        samples = load()
        with self.watch("degrade"):
            parameters = [self.encoder.parameters(sample.key, number) for sample in samples]
            images = [sample.image for sample in samples]
            return samples, degrade_batch(images, parameters, self.encoder.device)

    def _targets(self, samples: Sequence[ImageSample]) -> list[list[Encoded]]:
        """Encode HQ as it is and flipped."""
        images = [sample.image.astype(np.float32) / np.float32(255) for sample in samples]
        sides = []
        for flip in (0, 1):
            turned = [np.ascontiguousarray(image[:, ::-1]) if flip else image for image in images]
            names = [f"{sample.key}.target_{flip}" for sample in samples]
            sides.append(self._encoded(self.encoder.tensor(turned), names))
        return sides

    def _draw(
        self, number: int, samples: Sequence[ImageSample], degraded: Sequence[Degraded]
    ) -> "_Drawn":
        """Encode one draw of every sample of a group."""
        lq = self.encoder.tensor([pair.lq for pair in degraded])
        with self.watch("predict"):
            restored = self.encoder.restored(lq)
        names = [f"{sample.key}.source_{number}" for sample in samples]
        sources = self._encoded(restored, names)
        gray = [i for i, pair in enumerate(degraded) if pair.parameters.gray_target]
        gray_targets: dict[int, Encoded] = {}
        if gray:
            hq = self.encoder.tensor([degraded[i].hq for i in gray])
            names = [f"{samples[i].key}.target_g{number}" for i in gray]
            gray_targets = dict(zip(gray, self._encoded(hq, names), strict=True))
        latents = [
            _DrawLatents(number, pair, sources[i], gray_targets.get(i))
            for i, pair in enumerate(degraded)
        ]
        images = {"lq": lq, "posterior_mean": restored} if self.work.keep_images else {}
        return _Drawn(latents, {name: _pixels(image) for name, image in images.items()})

    def _encoded(self, images: torch.Tensor, names: Sequence[str]) -> list[Encoded]:
        with self.watch("encode"):
            return self.encoder.encode(images, names)

    def _pack(
        self,
        sample: ImageSample,
        targets: tuple[Encoded, Encoded] | None,
        draws: "Sequence[_DrawLatents]",
    ) -> dict[str, bytes]:
        """Turn a sample's latents into tar members, and count them."""
        record = {name: sample.label[name] for name in ("source", "origin", "sha256")}
        latents = LatentSample(
            key=sample.key,
            draws=[draw.stored() for draw in draws],
            targets=None if targets is None else (targets[0].latent, targets[1].latent),
            record=record,
        )
        try:
            packed = members(latents, self.latent)
        except ValueError as error:
            raise UserError(f"{sample.key}: {error}; choose another --dtype") from error
        for flip, target in enumerate(targets or ()):
            self._count("target", target, packed[f"target_{flip}.npy"])
        for draw in draws:
            self._count("source", draw.source, packed[f"source_{draw.number}.npy"])
        return packed

    def _count(self, side: str, latent: Encoded, content: bytes) -> None:
        self.sums[side].add(latent.latent, latent.variance, latent_values(content, self.latent))

    def _images(self, i: int, draws: range, drawn: "Sequence[_Drawn]") -> dict[str, bytes]:
        with self.watch("pack"):
            return {
                f"{name}_{number}.png": encode_png(images[i])
                for number, draw in zip(draws, drawn, strict=True)
                for name, images in draw.images.items()
            }

    def _timed(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Count the consumer's time between two samples as writing."""
        for sample in samples:
            with self.watch("write"):
                yield sample


_Prepared = tuple[list[ImageSample], list[Degraded]]


@dataclass(frozen=True, slots=True)
class _DrawLatents:
    """One draw of one sample, encoded."""

    number: int
    degraded: Degraded
    source: Encoded
    gray_target: Encoded | None

    def stored(self) -> LatentDraw:
        parameters = self.degraded.parameters
        return LatentDraw(
            number=self.number,
            flip=parameters.flip,
            source=self.source.latent,
            parameters=to_dict(parameters),
            gray_target=None if self.gray_target is None else self.gray_target.latent,
        )


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One draw of a group."""

    latents: list[_DrawLatents]
    images: Mapping[str, Any]
    """By name, RGB uint8 [B, H, W, 3]."""


def _pixels(images: torch.Tensor) -> npt.NDArray[np.uint8]:
    """[B, 3, H, W] in [0, 1] => RGB uint8 [B, H, W, 3]."""
    return levels(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def statistics_path(shard: Path) -> Path:
    """Return where a staged shard's channel sums lie."""
    return shard.with_name(f"{shard.name}.sums.json")


def device_name(device: torch.device) -> str:
    """Name what computed, for the manifest."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
