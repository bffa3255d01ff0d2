"""A picture of an aligned face: from the bytes of its file to the files that it becomes.

The workers of a job and the demo page both do it here, so that a picture has the same bytes on
either way.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import torch

from datasets.decoding import MAX_PIXELS, Pixels, decode
from datasets.unusable import UnusableImage
from models import spread
from models.faces.alignment import Points
from models.faces.find import FaceFinder
from pipelines.restore.belief import numbers, warnings
from pipelines.restore.faces import check_aligned
from pipelines.restore.networks import FaceRestorer, RestoredFace
from pipelines.restore.outputs import POSTERIOR_MEAN, png, text_of


@dataclass(frozen=True, slots=True)
class Given:
    """A picture that is to be restored."""

    key: str
    """Its name, which seeds the noise."""
    pixels: Pixels
    """Of the model's size."""
    facts: Mapping[str, Any]
    """Of the file, for the JSON."""
    notes: list[str]
    """What a user should know, in sentences."""
    face: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the face, for the JSON."""
    landmarks: Points | None = None
    """[68, 2] of the face in ``pixels``, where it was seen."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a picture became."""

    pictures: Mapping[str, bytes]
    """PNG files by what follows the key in their names: "" for the restored one."""
    record: Mapping[str, Any]
    """How it was made, for the JSON."""


class NoAlignedFace(UnusableImage):
    """A picture that is not one of an aligned face, or of too small a one."""


def given(
    key: str, file: str, data: bytes, size: int, max_pixels: int = MAX_PIXELS, smallest: int = 1
) -> Given:
    """Decode a picture and bring it to the model's size.

    Args:
        key: its name.
        file: the name of its file, for the JSON.
        data: the whole file.
        size: of the model's faces, in pixels of a side.
        max_pixels: the largest picture that is decoded.
        smallest: side in pixels of the smallest picture that is enlarged to that.

    Raises:
        UnusableImage: it cannot be decoded, is not square, or is too small.
    """
    pixels = decode(data, max_pixels)
    height, width = pixels.shape[:2]
    if height != width:
        raise NoAlignedFace(
            "not_aligned",
            f"{width} x {height} pixels: not square, so not an aligned face; give --whole for "
            "photographs, with an --output of their own",
        )
    if height < smallest:
        raise NoAlignedFace(
            "too_small",
            f"{height} x {height} pixels: smaller than --min-face {smallest}; a model of "
            f"{size} x {size} would invent most of the face; give --min-face {height} to have it "
            "restored all the same",
        )
    notes = []
    if height != size:
        notes.append(f"{height} x {height} pixels were resized to the model's {size} x {size}")
        way = cv2.INTER_AREA if height > size else cv2.INTER_CUBIC
        pixels = cv2.resize(pixels, (size, size), interpolation=way)
    return Given(key, pixels, facts_of(file, data, width, height), notes)


def checked(picture: Given, finder: FaceFinder | None) -> Given:
    """Look whether the face of a picture is aligned, and note what was seen of it.

    Raises:
        FaceRefusal: it is not aligned.
    """
    check = check_aligned(picture.pixels, finder)
    return replace(picture, face={"alignment": check.record()}, landmarks=check.landmarks)


def made(
    picture: Given, face: RestoredFace, restorer: FaceRestorer, *, keep_mean: bool = False
) -> Made:
    """Encode what a picture became, and say how it was made.

    Args:
        picture: that was restored.
        face: what it became.
        restorer: that did it.
        keep_mean: encode the posterior mean too, of a model that has one.
    """
    text = text_of(restorer.settings)
    samples = {f"sample-{n}": sample for n, sample in enumerate(face.samples, start=1)}
    pictures = {"": face.restored, **samples}
    if keep_mean and face.posterior_mean is not None:
        pictures[POSTERIOR_MEAN] = face.posterior_mean
    if face.spread is not None:
        pictures["spread"] = spread.picture(face.spread)
    said = numbers(face, picture.pixels, picture.landmarks)
    return Made(
        pictures={what: png(pixels, text) for what, pixels in pictures.items()},
        record={
            "key": picture.key,
            "input": picture.facts,
            **made_with(restorer),
            "faces": [{"number": 1, "outcome": "restored", **picture.face, **said}],
            "notes": [*picture.notes, *warnings(said, "the restored face")],
        },
    )


def facts_of(file: str, data: bytes, width: int, height: int) -> dict[str, Any]:
    """Return what the JSON says of an input: its name, its bytes, and the size of its picture."""
    return {"file": file, "bytes": len(data), "sha256": sha256(data), "size": [width, height]}


def made_with(restorer: FaceRestorer) -> dict[str, Any]:
    """Return what a picture depends on beside its input, for the JSON."""
    where = {"device": restorer.device.type, "execution": restorer.execution}
    settings = {**restorer.settings, **where}
    return {"settings": settings, "torch": torch.__version__}


def detail(error: UnusableImage) -> str:
    """Return what is said of an unusable picture beside its reason."""
    return str(error).removeprefix(f"{error.reason}: ")


def sha256(data: bytes) -> str:
    """Hash the bytes of a file, in hex."""
    return hashlib.sha256(data).hexdigest()
