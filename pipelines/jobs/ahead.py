"""Do a little work ahead of need, in threads, with results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def in_order(calls: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """Make calls and yield their results in order, up to ``threads + 1`` of them ahead of need.

    Args:
        calls: made in order; the first that raises ends the iteration there.
        threads: that make them; 0 makes each call when its result is asked for.
    """
    if not threads:
        yield from (call() for call in calls)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(calls)
        ahead: deque[Future[T]] = deque()
        while True:
            more = islice(waiting, threads + 1 - len(ahead))
            ahead.extend(pool.submit(call) for call in more)
            if not ahead:
                return
            yield ahead.popleft().result()
