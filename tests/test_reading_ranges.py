"""Ranged reads: the right bytes or an error with the shard's name; a cache that many may share."""

import contextlib
import multiprocessing
import os
import pickle
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.reading import ranges as ranged
from datasets.reading.ranges import CachedFiles, LocalFiles, Ranges, UnreadableRange, names_member
from datasets.shards import BLOCK, write_shard
from infra.errors import UsageError, UserError
from infra.folders.pool import Request

CONTENT = random.Random(0).randbytes(4096)
NAME = "train-000000.tar"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one shard of known content."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / NAME).write_bytes(CONTENT)
    return tmp_path / "set"


def read(files: Ranges, offset: int, *sizes: int, name: str = NAME) -> bytes:
    """Read into buffers of these sizes; returns their content joined."""
    buffers = [memoryview(bytearray(size)) for size in sizes]
    files.read(name, offset, buffers)
    return b"".join(buffers)


class Slow(LocalFiles):
    """Shards in a folder, as a bucket would have them; it notes what was asked for together."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {NAME: len(CONTENT)})
        self.asked: list[list[tuple[int, int]]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def read_many(self, requests: Sequence[Request]) -> Iterator[UnreadableRange | None]:
        """Read all at once, as a distant storage does."""
        self.asked.append([(one.offset, one.size) for one in requests])
        return iter(list(super().read_many(requests)))


def held(cache: Path) -> int:
    """Add up what a cache holds; what another process removes meanwhile does not count."""
    total = 0
    for path in cache.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, 2000), sizes=st.lists(st.integers(0, 500), min_size=1, max_size=4))
def test_both_kinds_give_the_bytes_of_the_file(folder: Path, offset: int, sizes: list[int]) -> None:
    """Whatever the range and its division: local, fetched, and kept."""
    expected = CONTENT[offset : offset + sum(sizes)]
    cached = CachedFiles(folder.parent / "cache", Slow(folder), limit=10**6)

    assert read(LocalFiles(folder, {NAME: 4096}), offset, *sizes) == expected
    assert read(cached, offset, *sizes) == expected
    assert read(cached, offset, *sizes) == expected


def test_a_read_that_comes_in_pieces_is_completed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network file systems and signals may return less than asked for: the rest follows."""
    preadv = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return preadv(descriptor, [buffers[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", short)

    assert read(LocalFiles(folder, {NAME: 4096}), 10, 5, 0, 20, 9) == CONTENT[10:44]


def test_a_missing_shard_is_named(folder: Path) -> None:
    """The message has the path."""
    with pytest.raises(UnreadableRange, match=r"val-000000\.tar: No such file"):
        read(LocalFiles(folder, {"val-000000.tar": 1}), 0, 1, name="val-000000.tar")


def test_a_shard_of_another_length_is_named(folder: Path) -> None:
    """Cut off or replaced: seen before a byte of it is used."""
    with pytest.raises(UnreadableRange, match=f"{NAME}: 4096 bytes, the manifest says 5000"):
        read(LocalFiles(folder, {NAME: 5000}), 0, 1)


def test_a_shard_that_shrinks_while_open_is_named(folder: Path) -> None:
    """A shard cut off under the reader is an error, not a batch of zeros."""
    files = LocalFiles(folder, {NAME: 4096})
    read(files, 0, 1)
    os.truncate(folder / NAME, 100)

    with pytest.raises(UnreadableRange, match=f"{NAME}: ends before byte 300"):
        read(files, 0, 300)


def test_descriptors_are_few(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of thousands of shards does not run out of descriptors."""
    monkeypatch.setattr(ranged, "MAX_OPEN", 3)
    names = [f"train-{number:06d}.tar" for number in range(50)]
    for name in names:
        (folder / name).write_bytes(b"x")
    files = LocalFiles(folder, dict.fromkeys(names, 1))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (counting, not walking)
    for name in names:
        read(files, 0, 1, name=name)

    assert len(os.listdir("/proc/self/fd")) - before <= 3  # noqa: PTH208


def test_a_pickled_reader_opens_its_own_files(folder: Path) -> None:
    """Spawned workers get the place, not the descriptor."""
    files = LocalFiles(folder, {NAME: 4096})
    read(files, 0, 1)

    assert read(pickle.loads(pickle.dumps(files)), 5, 10) == CONTENT[5:15]


def test_threads_share_a_reader(folder: Path) -> None:
    """Reads at explicit offsets do not disturb each other."""
    files = LocalFiles(folder, {NAME: 4096})
    offsets = [random.Random(1).randrange(4000) for _ in range(500)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda offset: read(files, offset, 50), offsets))

    assert found == [CONTENT[offset : offset + 50] for offset in offsets]


def test_kept_ranges_are_not_fetched_again(folder: Path) -> None:
    """The second reader of a range, in this process or a later one, asks nobody."""
    slow = Slow(folder)
    for _ in range(2):
        files = CachedFiles(folder.parent / "cache", slow, limit=1000)
        assert read(files, 100, 50) == CONTENT[100:150]

    assert slow.asked == [[(100, 50)]]


def test_the_least_recently_used_goes_first(folder: Path) -> None:
    """A range that was just read stays; the one not read for longest goes."""
    cache = folder.parent / "cache"
    files = CachedFiles(cache, Slow(folder), limit=350)
    for age, offset in enumerate((0, 100, 200)):
        read(files, offset, 100)
        os.utime(cache / NAME / f"{offset}-100", (age, age))
    read(files, 0, 100)  # a hit makes it the youngest
    read(files, 300, 100)

    assert {path.name for path in (cache / NAME).iterdir()} == {"0-100", "200-100", "300-100"}


def _load(folder: Path, seed: int) -> bool:
    files = CachedFiles(folder.parent / "cache", Slow(folder), limit=1000)
    offsets = [random.Random(seed).randrange(40) * 100 for _ in range(200)]
    return all(
        read(files, offset, 90) == CONTENT[offset : offset + 90]
        and held(folder.parent / "cache") <= 1000
        for offset in offsets
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.forks
def test_processes_share_a_cache(folder: Path) -> None:
    """Four processes that evict each other's ranges all read right, and never exceed the limit."""
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert all(pool.starmap(_load, [(folder, seed) for seed in range(4)]))


def test_a_kill_between_counting_and_keeping_costs_only_space(folder: Path) -> None:
    """A count left too high, and a temporary file, are put right at the next eviction."""
    cache = folder.parent / "cache"
    files = CachedFiles(cache, Slow(folder), limit=400)
    read(files, 0, 100)
    (cache / NAME / ".dead.partial").write_bytes(b"x" * 100)
    (cache / "bytes").write_bytes((390).to_bytes(8, "little"))
    for offset in (100, 200):
        read(files, offset, 100)

    assert {path.name for path in (cache / NAME).iterdir()} == {"0-100", "100-100", "200-100"}
    assert int.from_bytes((cache / "bytes").read_bytes(), "little") == 300


def test_a_kept_range_cut_short_is_fetched_again(folder: Path) -> None:
    """What a power failure left half-written is no hit."""
    cache = folder.parent / "cache"
    files = CachedFiles(cache, Slow(folder), limit=1000)
    read(files, 0, 100)
    os.truncate(cache / NAME / "0-100", 60)

    assert read(files, 0, 100) == CONTENT[:100]
    assert (cache / NAME / "0-100").stat().st_size == 100


def test_what_is_not_kept_is_asked_for_at_once(folder: Path) -> None:
    """The misses of a batch are one call, hits are none; every request gets its own answer."""
    slow = Slow(folder)
    files = CachedFiles(folder.parent / "cache", slow, limit=10**6)
    read(files, 200, 50)
    slow.asked.clear()
    requests = [
        Request(NAME, offset, [memoryview(bytearray(20)), memoryview(bytearray(30))])
        for offset in (0, 200, 5000, 100, 0)
    ]
    errors = list(files.read_many(requests))

    assert slow.asked == [[(0, 50), (5000, 50), (100, 50), (0, 50)]]
    assert [error is None for error in errors] == [True, True, False, True, True]
    assert "ends before byte 5050" in str(errors[2])
    for number in (0, 1, 3, 4):
        start = requests[number].offset
        assert b"".join(requests[number].buffers) == CONTENT[start : start + 50]
    assert held(folder.parent / "cache") == 3 * 50


def test_what_another_process_deletes_meanwhile_is_fetched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range that was there a moment ago and is gone when it is read: it is fetched after all."""
    slow = Slow(folder)
    files = CachedFiles(folder.parent / "cache", slow, limit=10**6)
    read(files, 0, 100)
    monkeypatch.setattr(ranged, "has_size", lambda path, size: not path.unlink())

    assert read(files, 0, 100) == CONTENT[:100]
    assert slow.asked == [[(0, 100)], [(0, 100)]]


def test_a_limit_below_one_read_is_refused(folder: Path) -> None:
    """The message has both numbers."""
    with pytest.raises(UsageError, match=r"limit of 50 bytes .* 100 bytes"):
        read(CachedFiles(folder.parent / "cache", Slow(folder), limit=50), 0, 100)


def test_a_cache_that_cannot_be_written_says_so(folder: Path) -> None:
    """A file where the folder should be: one sentence, no traceback."""
    (folder.parent / "cache").write_text("")

    with pytest.raises(UserError, match="cache"):
        read(CachedFiles(folder.parent / "cache", Slow(folder), limit=500), 0, 100)


@pytest.mark.parametrize(
    "key", ["a", "b" * 91, "folder/" * 10 + "x" * 80, "d" * 90 + "/" + "e" * 92]
)
def test_a_header_tells_its_member(tmp_path: Path, key: str) -> None:
    """Names of any length that USTAR holds are recognised, and only they."""
    write_shard(tmp_path / "x.tar", [(key, {"npy": b""})])
    header = (tmp_path / "x.tar").read_bytes()[:BLOCK]

    assert names_member(header, f"{key}.npy".encode())
    assert not names_member(header, f"{key}.npz".encode())
    assert not names_member(bytes(BLOCK), f"{key}.npy".encode())
