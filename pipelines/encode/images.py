"""The image set that is encoded, and which of its samples make which latent shard."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from datasets.reading.image_set import ImageSet
from datasets.shards import shard_name
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
