"""Shards in a folder of any kind, such as a bucket: the same ranges as `LocalFiles` reads.

`Cache.over` keeps what was read of them on a local disk.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets.reading.ranges import UnreadableRange
from infra.errors import UserError
from infra.folders.contract import Folder
from infra.folders.pool import Pool, Request


class BucketFiles:
    """Shards in a folder.

    Args:
        folder: the folder that holds them.
        sizes: the length in bytes that each shard must have, by name.
    """

    def __init__(self, folder: Folder, sizes: Mapping[str, int]) -> None:
        self.folder = folder
        self.sizes = dict(sizes)
        self._pool = Pool(folder)
        self._complete: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.sizes)

    def read(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill ``buffers`` with the bytes of shard ``name`` from ``offset``; see `Ranges`."""
        (error,) = self.read_many([Request(name, offset, buffers)])
        if error is not None:
            raise error

    def read_many(self, requests: Sequence[Request]) -> list[UnreadableRange | None]:
        """Fill the memory of many requests at once; returns what is wrong with each, or None."""
        wrong = {name: self._length_error(name) for name in {one.name for one in requests}}
        found = iter(self._pool.read_many([one for one in requests if not wrong[one.name]]))
        errors = [wrong[one.name] or next(found) for one in requests]
        return [None if error is None else UnreadableRange(str(error)) for error in errors]

    def _length_error(self, name: str) -> UserError | None:
        """Say what is wrong with a shard's length, which is asked for once."""
        if name in self._complete:
            return None
        try:
            size = self.folder.size(name)
        except UserError as error:
            return error
        if size != self.sizes[name]:
            found = "is missing" if size is None else f"has {size} bytes"
            return UserError(
                f"{self.folder.uri}/{name}: {found}, the manifest says {self.sizes[name]} bytes; "
                "copy the shard anew"
            )
        self._complete.add(name)
        return None
