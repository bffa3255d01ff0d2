"""The shards of a set, wherever it lies, for reading of ranges."""

from collections.abc import Mapping
from pathlib import Path

from datasets.reading.bucket import BucketFiles
from datasets.reading.ranges import Cache, LocalFiles, Ranges
from datasets.sets import PublishedSet
from datasets.shards import shard_sizes
from infra.paths import AnyPath


def shard_files(folder: AnyPath, sizes: Mapping[str, int]) -> Ranges:
    """Open shards in a folder.

    Args:
        folder: that holds them.
        sizes: the length in bytes that each must have, by name.
    """
    if isinstance(folder, Path):
        return LocalFiles(folder, sizes)
    return BucketFiles(folder.folder, sizes)


def shards_of(opened: PublishedSet, cache: Cache | None = None) -> Ranges:
    """Open the shards of a set, through a cache if there is one."""
    files = shard_files(opened.shards_folder, shard_sizes(opened.manifest))
    return files if cache is None else cache.over(files, opened.digest)
