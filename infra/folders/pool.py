"""Many ranges of a folder at once, as many as it takes to hide the way to a bucket.

How many requests must be under way to feed a GPU follows from Little's law: their number is the
rate times the time that each takes. A latent pair is one request of 512 KiB. At 870 pairs a second
(one H100) and 30 ms until the first byte, 870 x 0.030 = 26 requests wait; a connection of 85 MB/s
needs another 6 ms for the bytes, so 870 x 0.036 = 32 are under way (`in_flight`). The line must
carry 870 x 512 KiB = 456 MB/s, 3.7 Gbit/s.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from infra.ahead import map_ahead
from infra.errors import UsageError, UserError
from infra.folders.contract import Folder, Missing, Unavailable


class Request(NamedTuple):
    """A range of a file, and the memory that it is to fill."""

    name: str
    offset: int
    buffers: Sequence[memoryview]

    @property
    def size(self) -> int:
        """Its number of bytes."""
        return sum(view.nbytes for view in self.buffers)

    @property
    def end(self) -> int:
        """The byte behind the last."""
        return self.offset + self.size


def in_flight(rate: float, latency: float, size: int = 512 << 10, connection: float = 85e6) -> int:
    """Return how many requests must be under way to sustain a rate (Little's law).

    Args:
        rate: requests a second.
        latency: seconds until the first byte of an answer.
        size: bytes of a request.
        connection: bytes a second that one connection carries.
    """
    return math.ceil(rate * (latency + size / connection))


@dataclass(frozen=True)
class Pool:
    """Reads many ranges of a folder at once.

    Args:
        folder: where the files lie.
        threads: requests under way; the default feeds one H100 with latent pairs from 30 ms away.
        gap: neighbours that are at most so many bytes apart are read by one request, which throws
            the gap away: 64 KiB take less time than a request of their own.
        longest: bytes of a request that neighbours are joined into.
        lengths: bytes that each file must have, by name; a file that is not named may have any.
    """

    folder: Folder
    threads: int = 32
    gap: int = 64 << 10
    longest: int = 8 << 20
    lengths: Mapping[str, int] = field(default_factory=dict)

    def read_many(self, requests: Sequence[Request]) -> list[UserError | None]:
        """Fill the memory of all requests; returns what is wrong with each, None if nothing is.

        Raises:
            Unavailable: the folder cannot be asked, which is no fault of a file.
        """
        results: list[UserError | None] = [None] * len(requests)
        groups = list(joined(requests, self.gap, self.longest))
        read = map_ahead(
            lambda group: self._read([requests[n] for n in group]),
            groups,
            threads=min(self.threads, len(groups)),
        )
        for group, errors in zip(groups, read, strict=True):
            for number, error in zip(group, errors, strict=True):
                results[number] = error
        return results

    def _read(self, neighbours: Sequence[Request]) -> list[UserError | None]:
        """Read neighbours by one request, or one by one if that fails: the fault may be one's."""
        buffers, end = list[memoryview](), neighbours[0].offset
        for request in neighbours:
            buffers += [memoryview(bytearray(request.offset - end)), *request.buffers]
            end = request.end
        name = neighbours[0].name
        try:
            self.folder.read_into(name, neighbours[0].offset, buffers, self.lengths.get(name))
        except (Unavailable, UsageError):
            raise
        except UserError as error:
            if len(neighbours) == 1 or isinstance(error, Missing):
                return [error] * len(neighbours)
            return [self._read([request])[0] for request in neighbours]
        return [None] * len(neighbours)


def joined(requests: Sequence[Request], gap: int, longest: int) -> Iterator[list[int]]:
    """Yield the numbers of requests that are read together, in the order of their bytes.

    Args:
        requests: ranges; those that overlap are read apart.
        gap: bytes between two neighbours, at most.
        longest: bytes from the first to the last of a group, at most, unless one alone has more.
    """
    group: list[int] = []
    numbered = sorted(enumerate(requests), key=lambda one: (one[1].name, one[1].offset))
    for number, request in numbered:
        if group:
            first, last = requests[group[0]], requests[group[-1]]
            near = first.name == request.name and 0 <= request.offset - last.end <= gap
            if not near or request.end - first.offset > longest:
                yield group
                group = []
        group.append(number)
    if group:
        yield group
