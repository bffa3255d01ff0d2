"""Published sets for webdataset, and `s3://` for it, of which it knows nothing by itself.

    from datasets.webdataset_shards import SetShards
    for sample in SetShards(open_set(path_of("s3://faces/latents"), "latent set")).decode(): ...

Whoever imports this module may give `s3://` URLs to `webdataset.WebDataset` itself. They are read
as this project reads all objects: with the standard AWS variables, ahead by parallel ranges, and on
from the byte at which a connection broke.
"""

from typing import Any, BinaryIO

import webdataset
from webdataset.gopen import gopen_schemes

from datasets.sets import PublishedSet
from infra.paths import path_of, streamed


class SetShards(webdataset.WebDataset):  # type: ignore[misc]  # it has no types
    """The samples of a set as webdataset gives them: extensions to bytes, shard after shard.

    Args:
        opened: the set, on a disk or in a bucket.
        split: `train` or `val`.
        options: of `webdataset.WebDataset`; the shards are not shuffled unless it is told to.
    """

    def __init__(self, opened: PublishedSet, split: str = "train", **options: Any) -> None:
        folder = opened.shards_folder.absolute()
        shards = [one["name"] for one in opened.manifest["shards"] if one["split"] == split]
        super().__init__(
            [str(folder / name) for name in shards], **{"shardshuffle": False, **options}
        )


def _opened(url: str, mode: str = "rb", bufsize: int = 0, **_: Any) -> BinaryIO:
    """Open an object for webdataset, which reads it once from its start to its end."""
    if mode != "rb":
        raise ValueError(f"{url}: mode {mode!r}; shards in a bucket are written by infra.paths")
    return streamed(path_of(url))


gopen_schemes["s3"] = _opened
