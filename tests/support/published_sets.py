"""Small published sets, written with the project's own writers: images, and latents of noise."""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from datasets import shards
from datasets.decoding import encode_png
from datasets.latent_format import LatentDraw, LatentFormat, LatentSample, members
from datasets.latent_pairs import PAIRS, pair_table
from datasets.sets import FORMATS, Kind
from datasets.shards import Shard, index_table, parquet_bytes, shard_name, write_shard
from infra.config import canonical_json, pretty_json, to_dict
from infra.storage import write_bytes

SMALL = LatentFormat(channels=4, height=8, width=8)


def latent(latent_format: LatentFormat, *name: object) -> npt.NDArray[np.float32]:
    """Return the latent that a test knows under ``name``: standard normal noise."""
    rng = np.random.default_rng([zlib.crc32(repr(part).encode()) for part in name])
    return rng.standard_normal(latent_format.shape, np.float32)


def sample(
    latent_format: LatentFormat,
    key: str,
    draws: Sequence[int] = (0,),
    *,
    flip: Callable[[int], bool] = lambda draw: draw % 2 == 1,
    gray: Sequence[int] = (),
    targets: bool = True,
) -> LatentSample:
    """Make one latent sample; its latents are named by key and role."""
    both = latent(latent_format, key, "target", 0), latent(latent_format, key, "target", 1)
    return LatentSample(
        key=key,
        draws=[
            LatentDraw(
                number=draw,
                flip=flip(draw),
                source=latent(latent_format, key, "source", draw),
                gray_target=latent(latent_format, key, "gray", draw) if draw in gray else None,
            )
            for draw in draws
        ],
        targets=both if targets else None,
    )


def write_latent_shard(path: Path, samples: Iterable[LatentSample], latent: LatentFormat) -> Shard:
    """Write one tar of a latent set."""
    return write_shard(path, ((sample.key, members(sample, latent)) for sample in samples))


def write_latents(
    folder: Path,
    samples: Sequence[LatentSample],
    latent_format: LatentFormat = SMALL,
    *,
    per_shard: int = 5,
    split: str = "train",
    **manifest: Any,
) -> Path:
    """Publish a latent set; returns its folder."""
    written = [
        write_latent_shard(
            folder / shard_name(split, number),
            samples[start : start + per_shard],
            latent_format,
        )
        for number, start in enumerate(range(0, len(samples), per_shard))
    ]
    return publish_latents(folder, written, latent_format, **manifest)


def publish_latents(
    folder: Path, written: Sequence[Shard], latent_format: LatentFormat, **manifest: Any
) -> Path:
    """Write the tables and the manifest of latent shards that are there."""
    write_bytes(folder / PAIRS, parquet_bytes(pair_table(folder, written)))
    form = to_dict(latent_format)
    return finish(folder, written, "latent set", [PAIRS], latent=form, **manifest)


def write_images(
    folder: Path,
    images: Sequence[tuple[str, npt.NDArray[np.uint8]]],
    *,
    per_shard: int = 5,
    split: str = "train",
) -> Path:
    """Publish an image set; returns its folder."""
    written = image_shards(folder, images, per_shard=per_shard, split=split)
    return finish(folder, written, "image set")


def image_shards(
    folder: Path,
    images: Sequence[tuple[str, npt.NDArray[np.uint8]]],
    *,
    per_shard: int = 5,
    split: str = "train",
) -> list[Shard]:
    """Write the shards of one split of an image set."""
    contents = [(key, _image(key, image)) for key, image in images]
    return [
        write_shard(folder / shard_name(split, number), contents[start : start + per_shard])
        for number, start in enumerate(range(0, len(contents), per_shard))
    ]


def _image(key: str, image: npt.NDArray[np.uint8]) -> dict[str, bytes]:
    png, (height, width) = encode_png(image), image.shape[:2]
    sha256 = hashlib.sha256(png).hexdigest()
    label = {"key": key, "width": width, "height": height, "sha256": sha256}
    return {"png": png, "json": canonical_json(label)}


def finish(
    folder: Path, written: Sequence[Shard], kind: Kind, tables: Sequence[str] = (), **manifest: Any
) -> Path:
    """Write the index and the manifest of shards and tables that are there; returns the folder."""
    write_bytes(folder / shards.INDEX, parquet_bytes(index_table(written)))
    files = {name: shards.file_entry(folder / name) for name in [shards.INDEX, *tables]}
    entries = [shard.entry() for shard in written]
    values = {"format": FORMATS[kind][-1], **manifest, "shards": entries, "files": files}
    write_bytes(folder / shards.MANIFEST, pretty_json(values))
    return folder


def restate(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest, whose tables stay what it says."""
    manifest = json.loads((folder / shards.MANIFEST).read_bytes())
    change(manifest)
    write_bytes(folder / shards.MANIFEST, pretty_json(manifest))


def aged(folder: Path, *tables: str) -> Path:
    """Make a set one of the first format, whose tables have no checksums."""
    for name in tables:
        table = pq.read_table(folder / name)
        crcs = [column for column in table.column_names if column.endswith("crc32")]
        write_bytes(folder / name, parquet_bytes(table.drop_columns(crcs)))

    def first(manifest: dict[str, Any]) -> None:
        manifest["format"] = manifest["format"].replace("/2", "/1")
        manifest["files"] |= {name: shards.file_entry(folder / name) for name in tables}

    restate(folder, first)
    return folder
