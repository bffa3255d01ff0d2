"""Shards in a folder of any kind, such as a bucket: the same ranges as `LocalFiles` reads.

`Cache.over` keeps what was read of them on a local disk.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datasets.reading.ranges import Ranges, UnreadableRange
from infra.errors import UserError
from infra.folders.contract import Folder, Missing
from infra.folders.pool import Pool, Request


class BucketFiles(Ranges):
    """Shards in a folder.

    Args:
        folder: the folder that holds them.
        sizes: the length in bytes that each shard must have, by name.
    """

    takes_processor = True

    def __init__(self, folder: Folder, sizes: Mapping[str, int]) -> None:
        self.folder = folder
        self.sizes = dict(sizes)
        self._pool = Pool(folder, lengths=self.sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.sizes)

    def read_many(self, requests: Sequence[Request]) -> Iterator[UnreadableRange | None]:
        """Fill the memory of many requests at once; see `Ranges`."""
        errors = self._pool.read_many(requests)
        return (
            None if error is None else self._unreadable(one.name, error)
            for one, error in zip(requests, errors, strict=True)
        )

    def _unreadable(self, name: str, error: UserError) -> UnreadableRange:
        if isinstance(error, Missing):
            return UnreadableRange(
                f"{self.folder.uri}/{name}: there is no such file; bring the shard back, or make "
                "the set again"
            )
        return UnreadableRange(str(error))
