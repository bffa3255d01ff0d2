"""Many ranges of a bucket at once: the right bytes, few requests, the cache over it."""

import itertools
import pickle
import random
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.reading.bucket import BucketFiles
from datasets.reading.ranges import Cache, UnreadableRange, read_member
from datasets.shards import write_shard
from infra.folders.contract import Folder, Missing
from infra.folders.local import LocalFolder
from infra.folders.opening import open_folder
from infra.folders.pool import Pool, Request, in_flight, joined
from tests.conftest import PATIENCE
from tests.support.faulty_proxy import Fault, FaultyProxy

CONTENT = random.Random(3).randbytes(100_000)
SHARD = "train-000000.tar"


@pytest.fixture
def folder(s3_proxy: FaultyProxy) -> Folder:
    """A folder with one object of known content."""
    s3_proxy.harmless()
    folder = open_folder("s3://tests/reading")
    folder.put(SHARD, CONTENT)
    s3_proxy.harmless()
    return folder


def request(offset: int, size: int, name: str = SHARD) -> Request:
    """Make a request into memory of its own, divided in two."""
    half = size // 2
    return Request(name, offset, [memoryview(bytearray(half)), memoryview(bytearray(size - half))])


def content(one: Request) -> bytes:
    """Return what was read."""
    return b"".join(one.buffers)


ranges = st.tuples(st.integers(0, 2000), st.integers(0, 300))


@given(st.lists(ranges, max_size=20), st.integers(0, 100), st.integers(1, 1000))
def test_joined_ranges_are_near_each_other(
    asked: list[tuple[int, int]], gap: int, longest: int
) -> None:
    """Each request is in one group, whose members follow each other with small gaps."""
    requests = [request(*one, name=f"{one[0] % 2}") for one in asked]
    groups = list(joined(requests, gap, longest))

    assert sorted(number for group in groups for number in group) == list(range(len(asked)))
    for group in groups:
        members = [requests[number] for number in group]
        assert len({one.name for one in members}) == 1
        for one, other in itertools.pairwise(members):
            assert 0 <= other.offset - one.end <= gap
        assert len(group) == 1 or members[-1].end - members[0].offset <= longest


@given(st.lists(ranges, max_size=20), st.integers(0, 100))
def test_many_ranges_are_those_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, int]], gap: int
) -> None:
    """In whatever order, also twice and overlapping."""
    path = tmp_path_factory.getbasetemp() / SHARD
    if not path.exists():
        path.write_bytes(CONTENT)
    requests = [request(*one) for one in asked]
    errors = Pool(LocalFolder(path.parent), threads=2, gap=gap).read_many(requests)

    assert errors == [None] * len(asked)
    assert [content(one) for one in requests] == [CONTENT[at : at + size] for at, size in asked]


def test_neighbours_are_one_request(folder: Folder, s3_proxy: FaultyProxy) -> None:
    """Three ranges with small gaps, and one further away."""
    requests = [request(50_000, 100), request(10, 100), request(130, 100), request(250, 100)]
    assert Pool(folder, gap=50).read_many(requests) == [None] * 4

    asked = sorted(seen.headers["Range"] for seen in s3_proxy.seen)
    assert asked == ["bytes=10-349", "bytes=50000-50099"]
    assert [content(one) for one in requests] == [
        CONTENT[one.offset : one.offset + 100] for one in requests
    ]


def test_as_many_requests_are_under_way_as_there_are_threads(
    folder: Folder, s3_proxy: FaultyProxy
) -> None:
    """Eight wait for each other at the server, which fewer could never do."""
    meeting = threading.Barrier(8)
    s3_proxy.faults.append(Fault(times=8, before=lambda: _meet(meeting)))
    requests = [request(1000 * number, 100) for number in range(8)]

    assert Pool(folder, threads=8, gap=0).read_many(requests) == [None] * 8
    assert not meeting.broken


def _meet(meeting: threading.Barrier) -> None:
    meeting.wait(PATIENCE)


def test_one_unreadable_range_is_one_error(folder: Folder) -> None:
    """Its neighbours, which were asked for in the same request, are read all the same."""
    requests = [request(99_900, 50), request(99_960, 50), request(0, 10, name="none")]
    errors = Pool(folder).read_many(requests)

    assert errors[0] is None
    assert content(requests[0]) == CONTENT[99_900:99_950]
    assert "the object is shorter than it should be" in str(errors[1])
    assert isinstance(errors[2], Missing)


def test_the_arithmetic_of_requests_under_way() -> None:
    """Latent pairs for one H100: 870 a second of 512 KiB, 30 ms away (Little's law)."""
    assert in_flight(870, 0.030, size=0) == 27
    assert in_flight(870, 0.030) == 32 == Pool(LocalFolder(Path())).threads
    assert in_flight(870, 0.080) == 75


def test_members_of_a_shard_in_a_bucket_are_kept_on_disk(
    folder: Folder, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    """Read through the cache once, and from the disk after; also by a pickled reader."""
    member = write_shard(tmp_path / "x.tar", [("key", {"npy": CONTENT[:5000]})]).members[0]
    folder.put("x.tar", (tmp_path / "x.tar").read_bytes())
    size = (tmp_path / "x.tar").stat().st_size
    files = Cache(tmp_path / "cache", 10**6).over(BucketFiles(folder, {"x.tar": size}), "digest")
    before = s3_proxy.count("GET")
    for reader in (files, files, pickle.loads(pickle.dumps(files))):
        assert read_member(reader, "x.tar", "key.npy", member.offset, 5000) == CONTENT[:5000]

    assert s3_proxy.count("GET") == before + 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (SHARD, "has 100000 bytes, and 5 were expected; copy it anew"),
        ("none", "there is no such file; bring the shard back, or make the set again"),
    ],
)
def test_a_shard_of_another_length_is_named(
    folder: Folder, s3_proxy: FaultyProxy, name: str, said: str
) -> None:
    """Before a byte of it is used; every request for it has the error, and none asks for more."""
    files = BucketFiles(folder, {name: 5, "other": 5})
    folder.put("other", b"12345")
    other = request(0, 5, name="other")
    errors = list(files.read_many([request(0, 5, name=name), other, request(1, 2, name=name)]))

    assert errors[1] is None
    assert content(other) == b"12345"
    for error in (errors[0], errors[2]):
        assert isinstance(error, UnreadableRange)
        assert f"s3://tests/reading/{name}: {said}" in str(error)
    with pytest.raises(UnreadableRange, match=re.escape(said)):
        files.read(name, 0, request(0, 5).buffers)
    assert s3_proxy.count("HEAD") == 0
