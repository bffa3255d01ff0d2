"""The tar members of one shard's samples, computed or copied, and the sums of every latent."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from datasets.decoding import encode_png
from datasets.degradation.parameters import DegradationParameters
from datasets.latent_format import (
    LatentDraw,
    LatentFormat,
    LatentSample,
    image_extensions,
    members,
)
from datasets.reading.image_set import ImageSet, Row
from infra.config import pretty_json, to_dict
from infra.errors import UserError
from infra.paths import AnyPath, write_bytes
from pipelines.encode.networks import Encoded
from pipelines.encode.reuse import TARGETS, Copies, EarlierSet, Reuse
from pipelines.encode.sums import ChannelSums, latent_sums, latent_values, shard_table, write_tables


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationSpec:
    """The settings that all shards of a generation share."""

    plan: str
    """Path of the plan; tars are written beside it."""
    images: str
    """Folder of the image set."""
    size: int
    """Side of every image in pixels."""
    first: int
    """Number of the first draw; with 0 the targets are encoded too."""
    last: int
    """Number of the last draw, plus 1."""
    latent: Mapping[str, Any]
    """How a latent is stored: a `LatentFormat` as JSON values."""
    networks: Mapping[str, Any] | None = None
    """Their identity, which each worker's must be; None takes any."""
    keep_images: bool
    """Whether LQ and posterior mean are stored too, as PNG."""
    reuse: Reuse | None = None
    """The set from which latents are copied that would come out the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Computed:
    """The results of the networks for one group of samples."""

    labels: Mapping[str, Mapping[str, Any]]
    """The JSON of the new samples, by key."""
    latents: dict[str, Encoded] = field(default_factory=dict)
    """Latents by key and name, such as `00042.source_1`."""
    images: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """LQ and posterior mean by key and extension, RGB uint8 [H, W, 3], if images are kept."""


class Packer:
    """Makes the members of one shard's samples.

    Args:
        spec: the settings that the shards share.
        images: the set that is encoded.
        latent: how a latent is stored.
        parameters: returns the parameters of a degradation for (key, number).
        earlier: the set that latents are copied from, if any.
    """

    def __init__(
        self,
        spec: GenerationSpec,
        images: ImageSet,
        latent: LatentFormat,
        parameters: Callable[[str, int], DegradationParameters],
        earlier: EarlierSet | None,
    ) -> None:
        self.spec = spec
        self.images = images
        self.latent = latent
        self.parameters = parameters
        self.earlier = earlier
        self.draws = range(spec.first, spec.last)
        targets = TARGETS if spec.first == 0 else ()
        self.names = [*targets, *(f"source_{number}" for number in self.draws)]
        self.labels: Mapping[str, Mapping[str, Any]] = {}
        self.copies: Copies = {}
        self.copied = {"targets": 0, "sources": 0}
        self.counted: dict[tuple[str, str], Mapping[str, Any]] = {}

    def find_copies(self, rows: Sequence[Row]) -> None:
        """Look up which members of these rows' samples the earlier set has."""
        if self.earlier is not None:
            labels = self.images.labels(rows)
            self.labels = {row["key"]: label for row, label in zip(rows, labels, strict=True)}
            hashes = {key: label["sha256"] for key, label in self.labels.items()}
            self.copies = self.earlier.find(hashes, self.draws, self.parameters)

    def read_copies(self, row: Row) -> dict[str, bytes]:
        """Read the members that are copied for a row's sample, by extension; any thread may."""
        copies = self.copies.get(row["key"])
        return self.earlier.read(row["key"], copies) if self.earlier and copies else {}

    def lacks(self, key: str, name: str) -> bool:
        """Tell whether a latent must be computed."""
        return f"{name}.npy" not in self.copies.get(key, {})

    def is_new(self, row: Row) -> bool:
        """Tell whether any latent of this row's image must be computed."""
        return any(self.lacks(row["key"], name) for name in self.names)

    def pack(self, row: Row, computed: Computed, copies: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return a sample's tar members, and add its latents to the sums.

        Args:
            row: of the sample.
            computed: the results of the networks.
            copies: what `read_copies` returned.
        """
        key = row["key"]
        label = computed.labels.get(key) or self.labels[key]

        def latent(name: str) -> npt.NDArray[np.float32] | bytes:
            encoded = computed.latents.get(f"{key}.{name}")
            if encoded is not None:
                return encoded.latent
            self.copied["targets" if name.startswith("target") else "sources"] += 1
            return copies[f"{name}.npy"]

        targets = None
        if self.spec.first == 0:
            targets = latent(TARGETS[0]), latent(TARGETS[1])
        latents = LatentSample(
            key=key,
            draws=[self._stored(key, number, latent) for number in self.draws],
            targets=targets,
            record={name: label[name] for name in ("source", "origin", "sha256")},
        )
        try:
            packed = members(latents, self.latent)
        except ValueError as error:
            raise UserError(f"{key}: {error}; choose another --dtype") from error
        for name in self.names:
            self._count(key, name, packed[f"{name}.npy"], computed)
        kept = self.draws if self.spec.keep_images else ()
        for extension in chain.from_iterable(map(image_extensions, kept)):
            pixels = computed.images.get(f"{key}.{extension}")
            packed[extension] = copies[extension] if pixels is None else encode_png(pixels)
        return packed

    def _stored(
        self, key: str, number: int, latent: Callable[[str], npt.NDArray[np.float32] | bytes]
    ) -> LatentDraw:
        parameters = self.parameters(key, number)
        gray_target = None
        if parameters.gray_target:
            gray_target = latent(f"target_g{number}")
        return LatentDraw(
            number=number,
            flip=parameters.flip,
            source=latent(f"source_{number}"),
            parameters=to_dict(parameters),
            gray_target=gray_target,
        )

    def _count(self, key: str, name: str, content: bytes, computed: Computed) -> None:
        encoded = computed.latents.get(f"{key}.{name}")
        if encoded is not None:
            stored = latent_values(content, self.latent)
            part: Mapping[str, Any] = latent_sums(encoded.latent, encoded.variance, stored)
        else:
            assert self.earlier is not None
            part = self.earlier.sums(key, f"{name}.npy")
        self.counted[key, f"{name}.npy"] = part

    def save_statistics(self, path: AnyPath, by_what: Mapping[str, Any]) -> None:
        """Write the sums of every latent, and their totals with ``by_what`` added."""
        sides = {name: ChannelSums(self.latent.channels) for name in ("target", "source")}
        for (_, extension), part in self.counted.items():
            sides[extension.partition("_")[0]].add(part)
        sums_json: dict[str, Any] = {side: sums.to_json() for side, sums in sides.items()}
        sums_json |= by_what
        if self.spec.reuse is not None:
            sums_json["reused"] = {"manifest": self.spec.reuse.manifest, **self.copied}
        write_tables(table_path(path), [shard_table(path.name, self.counted)])
        write_bytes(statistics_path(path), pretty_json(sums_json))


def statistics_path(shard: AnyPath) -> AnyPath:
    """Return the path of a staged shard's channel sums."""
    return shard.with_name(f"{shard.name}.sums.json")


def table_path(shard: AnyPath) -> AnyPath:
    """Return the path of a staged shard's table of sums."""
    return shard.with_name(f"{shard.name}.sums.parquet")
