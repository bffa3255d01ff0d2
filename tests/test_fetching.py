"""Reading ahead: enough reads under way to hide a bucket's latency, and no more than was said."""

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import pytest

from datasets import fetching
from datasets.fetching import read_ahead
from datasets.sources import ImageRef
from datasets.unusable import UnreadableImage
from infra.ahead import map_ahead
from pipelines.curate import pack
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


def test_packing_reads_ahead_from_the_first_image_that_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether or not the rows of another image lie between those of one."""
    rows = [
        dataclasses.asdict(REFS[number]) | {"source": str(number)} for number in (0, 1, 2, 1, 3)
    ]
    seen: list[str] = []

    def read(ref: ImageRef) -> bytes:
        seen.append(ref.key)
        return ref.key.encode()

    monkeypatch.setattr(fetching, "read", read)
    monkeypatch.setattr(pack, "read", read)
    with closing(pack._Reading(rows)) as reading:
        assert [reading.fetch(row)() for row in rows[1:]] == [b"1", b"2", b"1", b"3"]

    assert sorted(seen) == ["1", "1", "2", "3"]
