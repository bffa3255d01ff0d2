"""Working ahead: order kept, no further than asked, errors in their place."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.jobs.ahead import in_order


@settings(max_examples=30)
@given(count=st.integers(0, 20), threads=st.integers(0, 4))
def test_results_come_in_the_order_of_the_calls(count: int, threads: int) -> None:
    """However many threads make them."""
    calls = [lambda number=number: number for number in range(count)]

    assert list(in_order(calls, threads)) == list(range(count))


@pytest.mark.parametrize("threads", [0, 2])
def test_no_more_is_begun_than_the_threads_and_one(threads: int) -> None:
    """Memory is bounded by what waits."""
    begun = []
    lock = threading.Lock()

    def call(number: int) -> int:
        with lock:
            begun.append(number)
        return number

    results = in_order((lambda number=number: call(number) for number in range(20)), threads)
    for number in range(5):
        assert next(results) == number
        assert len(begun) <= number + 1 + threads


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_comes_where_its_result_would(threads: int) -> None:
    """What was before it is not lost."""

    def fail() -> int:
        raise ValueError("third")

    results = in_order([lambda: 1, lambda: 2, fail], threads)

    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(results)
