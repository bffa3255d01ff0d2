"""Working ahead: order kept, no further than asked, errors in their place."""

import contextlib
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra import ahead
from infra.ahead import map_ahead, once


@settings(max_examples=30)
@given(
    count=st.integers(0, 20),
    threads=st.integers(0, 4),
    ahead=st.one_of(st.none(), st.integers(1, 9)),
)
def test_results_come_in_the_order_of_the_items(
    count: int, threads: int, ahead: int | None
) -> None:
    """However many threads compute them, and however far ahead, they are those of `map`."""
    assert list(map_ahead(str, range(count), threads=threads, ahead=ahead)) == [
        str(number) for number in range(count)
    ]


@pytest.mark.parametrize(("threads", "ahead"), [(0, None), (2, None), (2, 5)])
def test_no_more_is_begun_than_may_be_ahead(threads: int, ahead: int | None) -> None:
    """Beyond the result that was yielded there are ``ahead`` calls at most, or one a thread."""
    begun = []
    lock = threading.Lock()

    def call(number: int) -> int:
        with lock:
            begun.append(number)
        return number

    results = map_ahead(call, range(20), threads=threads, ahead=ahead)
    for number in range(5):
        assert next(results) == number
        assert len(begun) <= number + 1 + (threads if ahead is None else ahead)


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_comes_where_its_result_would(threads: int) -> None:
    """What was before it is not lost, and nothing comes after it."""

    def inverse(number: int) -> float:
        return 1 / number

    results = map_ahead(inverse, [1, 2, 0, 4], threads=threads)

    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_leaving_early_cancels_what_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing the iterator waits for the call under way, and no other is made."""
    begun: list[int] = []
    cancelled = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            cancelled.set()
            super().shutdown(wait=wait)

    def call(number: int) -> int:
        begun.append(number)
        assert number == 0 or cancelled.wait(timeout=60)
        return number

    monkeypatch.setattr(ahead, "ThreadPoolExecutor", Pool)
    with contextlib.closing(map_ahead(call, range(20), threads=1, ahead=10)) as results:
        assert next(results) == 0

    assert begun in ([0], [0, 1])


@pytest.mark.parametrize("threads", [0, 1])
def test_a_result_is_not_kept(threads: int) -> None:
    """Once the caller has dropped a result and asked for the next, its memory is free."""

    class Result:
        pass

    results = map_ahead(lambda _: Result(), range(3), threads=threads)
    kept = weakref.ref(next(results))
    next(results)

    assert kept() is None


def test_threads_that_ask_at_once_share_one_computation() -> None:
    """The second waits for what the first computes; without a lock both would compute it."""
    asked, calls = threading.Barrier(3), []

    def compute() -> object:
        calls.append(threading.get_ident())
        asked.wait()  # until the main thread and the other caller have come
        return object()

    shared = once(compute)

    def ask(is_late: bool) -> object:
        if is_late:
            asked.wait()
        return shared()

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(ask, is_late) for is_late in (False, True)]
        asked.wait()
        first, second = (result.result() for result in results)

    assert first is second
    assert len(calls) == 1
