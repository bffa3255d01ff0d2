"""Batches of image sets: crops for the VAE, and whole pairs degraded anew at each visit.

    sets = [ImageSet(Path(name), split="train") for name in ("lsdir", "ffhq")]
    crops = Crops(sets, weights=[1, 1])
    for batch, state in Loader(crops, layout, LoaderConfig(processes=True)): ...

Crop, flip and degradation of a sample are functions of (seed, key, visit), whichever process
computes them. Every image in a batch is in [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets.decoding import Pixels
from datasets.degradation.parameters import DegradationConfig
from datasets.reading.image_set import ImageSet
from datasets.reading.loader import stand_ins
from datasets.reading.memory import Memory
from datasets.reading.order import Picks, WeightedSet, keyed_integers
from datasets.reading.ranges import UnreadableRange
from infra.config import digest
from infra.errors import UserError


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Images for the VAE."""

    images: Tensor
    """[B, 3, H, W] float32 in [-1, 1]."""
    keys: Sequence[str]
    """Keys of the samples."""
    skipped: Sequence[str]
    """One message for each unreadable image that was replaced by another of the batch."""

    def pin_memory(self) -> "ImageBatch":
        """Return the batch in page-locked memory."""
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True, slots=True)
class DegradedBatch:
    """Pairs of HQ and LQ images, from which the trainer computes source and target itself."""

    hq: Tensor
    """[B, 3, H, W] float32 in [-1, 1]; flipped, or gray, where its degradation says so."""
    lq: Tensor
    """The degraded images, as ``hq``."""
    keys: Sequence[str]
    """Keys of the samples."""
    skipped: Sequence[str]
    """One message for each unreadable image that was replaced by another of the batch."""

    def pin_memory(self) -> "DegradedBatch":
        """Return the batch in page-locked memory."""
        return replace(self, hq=self.hq.pin_memory(), lq=self.lq.pin_memory())


class Mixture:
    """Image sets of which an epoch holds each sample as often as its set's weight says."""

    takes_processor = True
    """Whether to load takes so much of a processor that other processes had better do it."""

    def __init__(self, sets: Sequence[ImageSet], weights: Sequence[float] | None = None) -> None:
        self.sets = tuple(sets)
        weights = [1.0] * len(self.sets) if weights is None else weights
        self.weighted_sets = tuple(
            WeightedSet(size=len(images), weight=weight)
            for images, weight in zip(self.sets, weights, strict=True)
        )

    def refuse_other_sizes(self) -> None:
        """Refuse sets whose images, taken whole, would not fit into one batch.

        Only the first image of each set is read, and none where there is one set.

        Raises:
            UserError: names two sets and the sizes of their images.
        """
        shapes = [images.pixels(0).shape for images in self.sets if len(self.sets) > 1]
        for images, shape in zip(self.sets, shapes, strict=False):
            if shape != shapes[0]:
                sizes = [f"{width} x {height}" for height, width, _ in (shapes[0], shape)]
                raise UserError(
                    f"{self.sets[0].folder} has images of {sizes[0]} pixels, {images.folder} of "
                    f"{sizes[1]}: whole images of several sets have one size; curate them at one "
                    "--size"
                )

    @property
    def digest(self) -> str:
        """Identity of the data."""
        return digest([images.digest for images in self.sets])

    def read(self, picks: Picks) -> tuple[list[str], list[Pixels], list[str]]:
        """Read the images picked; returns keys, pixels, and a message for each unreadable one.

        Raises:
            UserError: another set has taken the place of one of these.
        """
        keys = [""] * len(picks.index)
        images: list[Pixels] = [np.empty((0, 0, 3), np.uint8)] * len(keys)
        unreadable: dict[int, str] = {}
        for which, of_set in enumerate(self.sets):
            rows = np.flatnonzero(picks.set_index == which).tolist()
            indices = picks.index[rows].tolist()
            for row, index, found in zip(rows, indices, of_set.many_pixels(indices), strict=True):
                keys[row] = of_set.key(index)
                if isinstance(found, UnreadableRange):
                    unreadable[row] = str(found)
                else:
                    images[row] = found
            if unreadable.keys() & set(rows):
                of_set.opened.refuse_if_replaced()
        for row, other in stand_ins(unreadable, len(images)).items():
            keys[row], images[row] = keys[other], images[other]
        return keys, images, [unreadable[row] for row in sorted(unreadable)]


class Crops(Mixture):
    """Random crops, mirrored half of the time.

    Args:
        sets: the image sets to mix.
        weights: how often an epoch holds each sample of each set; None is once.
        crop: side in pixels; None takes whole images, which must have one size.
        flip: whether to mirror a sample in half of its visits.
    """

    def __init__(
        self,
        sets: Sequence[ImageSet],
        weights: Sequence[float] | None = None,
        *,
        crop: int | None = 256,
        flip: bool = True,
    ) -> None:
        super().__init__(sets, weights)
        self.crop = crop
        self.flip = flip
        if crop is None:
            self.refuse_other_sizes()

    def load(self, picks: Picks, memory: Memory) -> ImageBatch:
        """Load crops; see `datasets.reading.loader.Samples`."""
        keys, images, skipped = self.read(picks)
        crops = [
            self.cut(image, seed=picks.seed, key=key, visit=int(visit))
            for key, image, visit in zip(keys, images, picks.visit, strict=True)
        ]
        return ImageBatch(to_model_range(crops, keys, memory), keys, skipped)

    def cut(self, image: Pixels, *, seed: int, key: str, visit: int) -> Pixels:
        """Cut the crop that (seed, key, visit) draws out of RGB [H, W, 3]; a view.

        Raises:
            UserError: the image is smaller than the crop.
        """
        height, width, _ = image.shape
        crop_height, crop_width = (self.crop, self.crop) if self.crop else (height, width)
        rows, columns = height - crop_height + 1, width - crop_width + 1
        if min(rows, columns) < 1:
            raise UserError(
                f"{key}: an image of {width} x {height} pixels has no crop of {self.crop}; "
                "give a smaller crop, or curate with a larger size"
            )
        y, x, mirrored = keyed_integers(seed, key, visit, rows, columns, 2)
        cut = image[y : y + crop_height, x : x + crop_width]
        return cut[:, ::-1] if self.flip and mirrored else cut


class OnlinePairs(Mixture):
    """Whole images with another degradation at each visit.

    Args:
        sets: the image sets to mix.
        degradation: the ranges that its parameters are drawn from.
        weights: how often an epoch holds each sample of each set; None is once.
    """

    def __init__(
        self,
        sets: Sequence[ImageSet],
        degradation: DegradationConfig,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(sets, weights)
        self.degradation = degradation
        self.refuse_other_sizes()

    def load(self, picks: Picks, memory: Memory) -> DegradedBatch:
        """Load pairs; see `datasets.reading.loader.Samples`."""
        from datasets.degradation.reference import degrade, draw_parameters

        keys, images, skipped = self.read(picks)
        pairs = []
        for key, image, visit in zip(keys, images, picks.visit.tolist(), strict=True):
            drawn = draw_parameters(self.degradation, seed=picks.seed, key=key, draw=visit)
            pairs.append(degrade(image, drawn))
        return DegradedBatch(
            hq=to_model_range([pair.hq for pair in pairs], keys, memory),
            lq=to_model_range([pair.lq for pair in pairs], keys, memory),
            keys=keys,
            skipped=skipped,
        )


def to_model_range(
    images: Sequence[npt.NDArray[np.uint8] | npt.NDArray[np.float32]],
    keys: Sequence[str],
    memory: Memory,
) -> Tensor:
    """RGB [H, W, 3], uint8 or float32 in [0, 1] => float32 [B, 3, H, W] in [-1, 1].

    Raises:
        UserError: the images differ in size.
    """
    shape = images[0].shape
    for key, image in zip(keys, images, strict=True):
        if image.shape != shape:
            raise UserError(
                f"{key} has shape {list(image.shape)}, {keys[0]} has {list(shape)}: images of one "
                "batch have one size; give a crop"
            )
    height, width, channels = shape
    batch = memory.take((len(images), channels, height, width), torch.float32)
    pixels = batch.numpy().transpose(0, 2, 3, 1)
    for row, image in enumerate(images):
        scale = np.float32(2 / 255 if image.dtype == np.uint8 else 2)
        np.multiply(image, scale, out=pixels[row], casting="unsafe")
    return batch.sub_(1)
