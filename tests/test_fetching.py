"""Reading ahead: enough reads under way to hide a bucket's latency, and no more than was said."""

import threading
from collections.abc import Iterator
from itertools import islice

import pytest

from datasets import fetching
from datasets.fetching import read_ahead
from datasets.sources import ImageRef
from datasets.unusable import UnreadableImage
from infra.ahead import map_ahead
from tests.conftest import PATIENCE

REFS = [
    ImageRef(key=str(n), origin="o", file=f"{n}.jpg", path=f"/{n}.jpg", size=1, stamp=0)
    for n in range(20)
]


def test_so_many_reads_are_under_way_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read waits here until four are under way; the results come in order."""
    together = threading.Barrier(4)

    def read(ref: ImageRef) -> bytes:
        together.wait(PATIENCE)
        return ref.key.encode()

    monkeypatch.setattr(fetching, "read", read)
    found = [(ref, data()) for ref, data in read_ahead(REFS, readers=4)]
    assert found == [(ref, ref.key.encode()) for ref in REFS]


def test_no_more_is_read_than_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are taken one by one as results are, and what nobody wants is not read."""
    taken: list[ImageRef] = []

    def refs() -> Iterator[ImageRef]:
        for ref in REFS:
            taken.append(ref)
            yield ref

    monkeypatch.setattr(fetching, "read", lambda ref: ref.key.encode())
    ahead = read_ahead(refs(), readers=4)
    assert [data() for _, data in islice(ahead, 3)] == [b"0", b"1", b"2"]
    ahead.close()
    assert len(taken) == 3 + 4


def test_what_is_wrong_with_an_image_is_said_where_its_bytes_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others are read, also by threads that take them ahead of each other."""

    def read(ref: ImageRef) -> bytes:
        if ref.key == "7":
            raise UnreadableImage("vanished")
        return ref.key.encode()

    def outcome(image: tuple[ImageRef, fetching.Fetch]) -> str:
        try:
            return image[1]().decode()
        except UnreadableImage as error:
            return error.reason

    monkeypatch.setattr(fetching, "read", read)
    found = list(map_ahead(outcome, read_ahead(REFS), threads=6))
    assert found == [ref.key if ref.key != "7" else "vanished" for ref in REFS]
