"""Work ahead of need, in threads: a `map` with results in order, and results that calls share."""

import functools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def map_ahead(
    function: Callable[[A], B], items: Iterable[A], *, threads: int, ahead: int | None = None
) -> Generator[B, None, None]:
    """Yield ``function(item)`` for every item, in order, computed before it is asked for.

    The first call that raises ends the iteration where its result would have been. Closing the
    iterator cancels the calls that have not begun and waits for those that have. No reference to a
    result is kept after the next one is asked for, so that its memory can be used again.

    Args:
        function: is called by several threads at once.
        items: are taken in the caller's thread, when a result is asked for.
        threads: how many make the calls; 0 makes each call when its result is asked for.
        ahead: calls under way or done, at most, beyond the result that was yielded last; None
            takes one for each thread.
    """
    if not threads:
        yield from map(function, items)
        return
    waiting = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        begun = islice(waiting, threads if ahead is None else ahead)
        pending: deque[Future[B]] = deque(pool.submit(function, item) for item in begun)
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(waiting, 1))
            yield result
            del result
    finally:
        pool.shutdown(cancel_futures=True)


def once(function: Callable[[], B]) -> Callable[[], B]:
    """Return a function that computes its result once, whichever threads ask for it meanwhile."""
    kept, lock = functools.cache(function), threading.Lock()

    def result() -> B:
        with lock:
            return kept()

    return result
