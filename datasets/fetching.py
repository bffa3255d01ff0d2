"""The bytes of images, read before they are asked for.

A bucket answers late, but many at once. How many reads must be under way to hide that follows from
Little's law: their number is the rate times the time that each takes. From 30 ms away, over a
connection of 85 MB/s, FFHQ's images of 1.3 MB take 45 ms and LSDIR's of 5 MB take 90 ms. A worker
on a CPU takes ten of the former a second, and one that feeds a GPU with 200 patches a second takes
17 of the latter: 0.5 and 1.5 reads under way. Four also hide 200 ms.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from datasets.sources import ImageRef, read

Fetch = Callable[[], bytes]
"""Returns the bytes of an image, or raises, as `datasets.sources.read` does."""
READERS = 4  # images that are being read, or wait to be taken, beyond the one that was yielded last


def read_ahead(
    refs: Iterable[ImageRef], readers: int = READERS
) -> Generator[tuple[ImageRef, Fetch], None, None]:
    """Yield images, whose bytes are being read already.

    Closing the iterator cancels the reads that have not begun and waits for those that have.

    Args:
        refs: images.
        readers: threads that read.
    """
    waiting = iter(refs)
    pool = ThreadPoolExecutor(readers, thread_name_prefix="read")
    pending: deque[tuple[ImageRef, Future[bytes]]] = deque()
    try:
        while True:
            room = readers + 1 - len(pending)
            pending.extend((ref, pool.submit(read, ref)) for ref in islice(waiting, room))
            if not pending:
                break
            ref, data = pending.popleft()
            yield ref, data.result
            del data
    finally:
        for _, data in pending:
            data.cancel()
        pool.shutdown(wait=bool(pending))  # who took the last images may be waiting for them yet
