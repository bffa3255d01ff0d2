"""The latent format: how a latent is stored, and what a latent set's tars hold.

A latent set is a set as in `datasets.shards`. A sample of its tars, in this order:

    KEY.json                              its draws: flip, gray_target, parameters of each
    KEY.source_4.npy  KEY.target_g4.npy   a draw that made the target grey, with that target
    KEY.source_0.npy                      draws of the image as it is
    KEY.target_0.npy  KEY.target_1.npy    the target as it is, and flipped
    KEY.source_1.npy                      draws of the flipped image

so that with one draw, or with one of each flip, every pair lies in one stretch of the file. Later
draws of a key go into further tars (json and sources only; no old tar changes). Every `.npy` is in
C order with a header of 128 bytes, so that data start at a multiple of 64 in the file.
"""

import dataclasses
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from infra.config import STRICT, canonical_json

NPY_HEADER = 128
KEPT_IMAGES = ("lq", "posterior_mean")
"""What a set may hold of every draw beside the latents, as `KEY.NAME_DRAW.png`."""
LatentType = Literal["float16", "float32", "uint8"]


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class LatentFormat:
    """How one latent is stored; the manifest's `latent` entry.

    An eight-bit value q stands for ``q * scale + offset`` of its channel.
    """

    channels: PositiveInt
    """Number of channels C of a latent [C, h, w]."""
    height: PositiveInt
    """Height h of a latent."""
    width: PositiveInt
    """Width w of a latent."""
    dtype: LatentType = "float16"
    """Stored type: float16, float32 or uint8."""
    scale: tuple[PositiveFloat, ...] | None = None
    """Difference between two levels of each channel; for uint8 only."""
    offset: tuple[float, ...] | None = None
    """Value that q = 0 stands for in each channel; for uint8 only."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel over the set's targets; nothing is normalised by it here."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel over the set's targets."""

    def __post_init__(self) -> None:
        if (self.dtype == "uint8") != (self.scale is not None and self.offset is not None):
            raise ValueError(
                f"dtype {self.dtype} with scale {self.scale} and offset {self.offset}: "
                "uint8 needs both, the others need none"
            )
        for name in ("scale", "offset", "mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one latent, [C, h, w]."""
        return self.channels, self.height, self.width

    @property
    def data_bytes(self) -> int:
        """Bytes of one latent without its header."""
        return self.channels * self.height * self.width * np.dtype(self.dtype).itemsize

    @property
    def member_bytes(self) -> int:
        """Bytes of one `.npy` member."""
        return NPY_HEADER + self.data_bytes

    def header(self) -> bytes:
        """Return the `.npy` header that every latent of the set has."""
        file = io.BytesIO()
        description = np.lib.format.header_data_from_array_1_0(np.empty(self.shape, self.dtype))
        np.lib.format.write_array_header_1_0(file, description)
        header = file.getvalue()
        if len(header) != NPY_HEADER:
            raise AssertionError(f"NumPy wrote a header of {len(header)} bytes, not {NPY_HEADER}")
        return header

    def encode(self, latent: npt.NDArray[Any] | bytes) -> bytes:
        """Latent [C, h, w], float => the bytes of its `.npy` member; such bytes => themselves.

        Raises:
            ValueError: another shape, or values that the dtype cannot hold.
        """
        if isinstance(latent, bytes):
            if len(latent) != self.member_bytes or not latent.startswith(self.header()):
                raise ValueError("a stored latent of another shape or dtype")
            return latent
        if latent.shape != self.shape:
            raise ValueError(f"latent of shape {latent.shape}, the set holds {self.shape}")
        with np.errstate(over="ignore"):
            stored = self._stored(latent)
        if not np.isfinite(stored).all():
            raise ValueError(
                f"a latent from {latent.min()} to {latent.max()} cannot be stored as {self.dtype}"
            )
        return self.header() + stored.tobytes()

    def _stored(self, latent: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.scale is None or self.offset is None:
            return latent.astype(self.dtype)
        if not np.isfinite(latent).all():
            return latent
        # Element by element: which of two levels a value between them takes is decided by the last
        # bits of the network that computed it, as it is in every other dtype of a latent.
        scale, offset = (np.asarray(v)[:, None, None] for v in (self.scale, self.offset))
        levels = np.clip(np.rint((latent - offset) / scale), 0, 255)
        return np.asarray(levels, np.uint8)

    @classmethod
    def eight_bit(
        cls,
        shape: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        reach: float = 4.0,
    ) -> "LatentFormat":
        """Make the 8-bit format whose 256 levels reach ``reach`` deviations to each side.

        Rounding errs by scale / sqrt(12) in root mean square, 0.9 % of a deviation at reach 4;
        what lies beyond is clipped, which makes it 1 % for normal latents.
        """
        channels, height, width = shape
        return cls(
            channels=channels,
            height=height,
            width=width,
            dtype="uint8",
            scale=tuple(2 * reach * deviation / 255 for deviation in std),
            offset=tuple(m - reach * s for m, s in zip(mean, std, strict=True)),
            mean=tuple(mean),
            std=tuple(std),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LatentDraw:
    """One degradation of an image, encoded."""

    number: int
    """Number k of the draw."""
    flip: bool
    """Whether the image was mirrored first."""
    source: npt.NDArray[Any] | bytes
    """Latent of the posterior mean, [C, h, w]; or the `.npy` member of a set of the same format."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the degradation, as JSON values."""
    gray_target: npt.NDArray[Any] | bytes | None = None
    """Target of a draw that changes it, as ``source``; None where the target is the image's own."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LatentSample:
    """The latents of an image that one tar holds."""

    key: str
    """Key of the image."""
    draws: Sequence[LatentDraw]
    """Draws of the image, in any order."""
    targets: tuple[npt.NDArray[Any] | bytes, npt.NDArray[Any] | bytes] | None
    """Latents of HQ as it is and flipped, as `LatentDraw.source`; None where an earlier tar of the
    set has them."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the sample's JSON."""


def members(sample: LatentSample, latent: LatentFormat) -> dict[str, bytes]:
    """Encode a sample's members in the order that keeps pairs together."""
    draws = sorted(sample.draws, key=lambda draw: draw.number)
    described = {
        str(draw.number): {
            "flip": draw.flip,
            "gray_target": draw.gray_target is not None,
            "parameters": dict(draw.parameters),
        }
        for draw in draws
    }
    if len(described) != len(draws):
        raise ValueError(f"{sample.key}: two draws of one number")
    contents = {"json": canonical_json({**sample.record, "key": sample.key, "draws": described})}
    for draw in draws:
        if draw.gray_target is not None:
            gray = target_extension(draw.number, draw.flip, gray=True)
            contents[source_extension(draw.number)] = latent.encode(draw.source)
            contents[gray] = latent.encode(draw.gray_target)
    for flip in (False, True):
        sources = {
            source_extension(draw.number): latent.encode(draw.source)
            for draw in draws
            if draw.flip is flip and draw.gray_target is None
        }
        target = {}
        if sample.targets is not None:
            target = {target_extension(0, flip, False): latent.encode(sample.targets[flip])}
        contents.update({**target, **sources} if flip else {**sources, **target})
    return contents


def source_extension(draw: int) -> str:
    """Name the member that is the source of a draw."""
    return f"source_{draw}.npy"


def target_extension(draw: int, flip: bool, gray: bool) -> str:
    """Name the member that is the target of a draw."""
    return f"target_g{draw}.npy" if gray else f"target_{int(flip)}.npy"


def image_extensions(draw: int) -> list[str]:
    """Name the members with the images of a draw, if they are kept, in the order of the tar."""
    return [f"{name}_{draw}.png" for name in KEPT_IMAGES]


def extensions(
    draws: Collection[int], is_gray: Callable[[int], bool], *, images: bool
) -> Iterator[str]:
    """Name the members of a sample, or of the part of it that one tar has.

    Args:
        draws: numbers of the draws; the targets as they are and flipped lie with draw 0.
        is_gray: tells of a number whether that draw makes the target grey.
        images: whether the images of draws are kept.
    """
    yield "json"
    if 0 in draws:
        yield from (target_extension(0, flip, gray=False) for flip in (False, True))
    for draw in draws:
        yield source_extension(draw)
        if is_gray(draw):
            yield target_extension(draw, flip=False, gray=True)
        if images:
            yield from image_extensions(draw)


LONGEST_EXTENSION = max(extensions([9_999], lambda _: True, images=True), key=len)
"""No extension of a member is longer, in a set of at most 10,000 draws."""
