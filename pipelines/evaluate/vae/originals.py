"""The pictures that autoencoders reconstruct: listed in a fixed order, then each as PNG of 8 bits.

A folder of their own is what the evaluation compares with, whatever they came from: a part of a
folder, an archive, a set; and others can be given the very same pictures.
"""

import hashlib
from dataclasses import replace
from typing import Any

from datasets.decoding import Pixels
from datasets.inputs import parsed
from datasets.reading.image_set import ImageSet
from datasets.shards import MANIFEST
from datasets.sources import ImageRef
from infra.errors import UsageError, UserError
from infra.paths import AnyPath
from pipelines.evaluate.vae.config import VAEsConfig
from pipelines.evaluate.vae.filling import Filler, Target, Unit
from pipelines.jobs.inputs import listed


def find_pictures(config: VAEsConfig, kept: AnyPath) -> list[ImageRef]:
    """List the pictures of --input by key, or the first of them.

    Args:
        config: of the command.
        kept: folder of what is kept of archives.

    Raises:
        UsageError: there is none, or a set that is none of images.
    """
    folder = parsed(config.input).path
    if (folder / MANIFEST).is_file():
        found = of_set(folder, config.split)[: config.first]
    else:
        listing = listed((config.input,), kept).first(config.first)
        listing.prepare()
        found = list(listing.images)
    return [replace(ref, origin="--input") for ref in found]


def of_set(folder: AnyPath, split: str) -> list[ImageRef]:
    """Return where the pictures of a published image set lie in its shards, by key.

    Raises:
        UsageError: it is another set, incomplete, or has no picture of that split.
    """
    try:
        images = ImageSet(folder, split=None if split == "all" else split)
    except UserError as error:
        raise UsageError(f"--input {error} (--split {split})") from error
    refs = [
        ImageRef(
            key=row["key"],
            origin=folder.name,
            file=row["key"],
            path=str((images.opened.shards_folder / row["shard"]).absolute()),
            offset=row["png_offset"],
            size=row["png_size"],
            stamp=row["png_crc32"] or 0,
        )
        for row in map(images.row, range(len(images)))
    ]
    return sorted(refs, key=lambda ref: ref.key)


class WriteOriginals:
    """The worker that writes the pictures as they are decoded; the facts are digest and size."""

    def __init__(self, target: Target, session: str) -> None:
        self.fill = Filler(target, session)

    def __call__(self, unit: Unit) -> dict[str, Any]:
        """Write the pictures of a unit."""
        return self.fill(unit, kept)


def kept(pixels: Pixels) -> tuple[Pixels, list[Any]]:
    """Return a picture as it is, and the SHA-256 of its levels, its width and its height."""
    height, width = pixels.shape[:2]
    return pixels, [hashlib.sha256(pixels.tobytes()).hexdigest(), width, height]
