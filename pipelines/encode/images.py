"""The image set that is encoded, and which of its samples make which latent shard."""

import functools
import tarfile
from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from datasets.latent_format import extensions
from datasets.reading.image_set import ImageSet
from datasets.shards import USTAR_LIMITS, fits_ustar, shard_name
from infra.errors import UsageError, UserError
from infra.paths import AnyPath


def open_images(folder: AnyPath, limit: int | None = None) -> ImageSet:
    """Open the image set of --input, or its first ``limit`` samples.

    Raises:
        UsageError: no complete image set, or one of images that are not square.
    """
    try:
        images = ImageSet(folder, limit=limit)
        _ = images.size  # read now, so that images that are not square are refused now
    except UserError as error:
        raise UsageError(f"--input {error}") from error
    return images


def long_names(
    keys: pa.ChunkedArray, draws: range, is_gray: Callable[[str, int], bool], *, images: bool
) -> list[str]:
    """Name of every key that is too long the longest member that its sample would have.

    Args:
        keys: of the samples.
        draws: numbers of the draws.
        is_gray: tells of a key and a number whether that draw makes the target grey.
        images: whether the images of draws are kept.
    """

    def longest(key: str, is_gray: Callable[[int], bool]) -> str:
        return f"{key}.{max(extensions(draws, is_gray, images=images), key=len)}"

    # Draws take a millisecond each: they are made for the few keys that a gray one could decide.
    room = tarfile.LENGTH_NAME - len(longest("", lambda _: True))
    long = keys.filter(pc.greater(pc.binary_length(keys), room)).to_pylist()
    unsure = [key for key in long if not fits_ustar(longest(key, lambda _: True))]
    names = [longest(key, functools.partial(is_gray, key)) for key in unsure]
    return [name for name in names if not fits_ustar(name)]


def refuse_long_names(
    folder: AnyPath,
    keys: pa.ChunkedArray,
    draws: range,
    is_gray: Callable[[str, int], bool],
    *,
    images: bool,
) -> None:
    """Refuse samples whose members a tar cannot hold, before anything is computed.

    Args:
        folder: of the image set.
        keys: as for `long_names`, as the others are.
        draws: numbers of the draws.
        is_gray: tells whether a draw makes the target grey.
        images: whether the images of draws are kept.

    Raises:
        UsageError: there are such samples.
    """
    names = long_names(keys, draws, is_gray, images=images)
    if not names:
        return
    suffices = images and not long_names(keys, draws, is_gray, images=False)
    raise UsageError(
        f"--input {folder}: {len(names):,} of its keys are too long for a latent set; the first "
        f"makes the name {names[0]}, and {USTAR_LIMITS}: give these photographs, or their folders, "
        "shorter names and curate again into the same folder, which scores only what has a new "
        f"name{', or leave --keep-images out' if suffices else ''}"
    )


def latent_shards(rows: pa.Table, per_shard: int, taken: Mapping[str, int]) -> dict[str, pa.Table]:
    """Cut samples into latent shards.

    Args:
        rows: of an image set, as in `datasets.reading.image_set.ROW`.
        per_shard: samples in a shard; only the last of a split has fewer.
        taken: shards that each split has already; numbers go on from there.

    Returns:
        {name: its rows}, in the order of the samples.
    """
    splits = pc.replace_substring_regex(rows["shard"], r"-[0-9]+\.tar$", "")
    tables = {}
    for split in pc.unique(splits).to_pylist():
        of_split = rows.filter(pc.equal(splits, split))
        for number in range(-(-len(of_split) // per_shard)):
            name = shard_name(split, taken.get(split, 0) + number)
            tables[name] = of_split.slice(number * per_shard, per_shard)
    return tables
