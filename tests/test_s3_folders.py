"""One contract, kept by folders on a disk and in a bucket alike."""

import hashlib
import pickle
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import UsageError, UserError
from infra.folders.contract import Folder, Missing, Taken
from infra.folders.opening import open_folder
from infra.s3 import reading, uploading
from infra.storage import TEMPORARY_SUFFIX
from tests.support.faulty_proxy import FaultyProxy
from tests.support.s3_server import S3Server, use

CONTENT = random.Random(0).randbytes(10_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAMES = (
    "plain.tar",
    "with space.png",
    "plus+and%20percent%.png",
    "caf\u00e9.png",  # one code point
    "cafe\u0301.png",  # the same letter in two
    "a/deep/er.png",
    "a-sorts-before-a-slash.png",
    "question?hash#amp&.png",
    "\u5bb6/\U0001f600.png",
    "quote'\"<xml>.json",
)


@pytest.fixture(params=["local", "bucket"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, s3_proxy: FaultyProxy
) -> Iterator[Folder]:
    """An empty folder of each kind; what went through the proxy before is forgotten."""
    s3_proxy.harmless()
    if request.param == "local":
        yield open_folder(str(tmp_path / "folder"))
    else:
        yield open_folder(
            f"s3://tests/contract/{hashlib.sha256(str(tmp_path).encode()).hexdigest()}"
        )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A local file of known content."""
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


def test_names_mean_bytes(folder: Folder, tmp_path: Path) -> None:
    """Whatever the characters of a name: written, listed in order, sized, read and fetched."""
    for name in NAMES:
        folder.put(name, name.encode())

    assert [one[:2] for one in folder.list()] == [(n, len(n.encode())) for n in sorted(NAMES)]
    for name in NAMES:
        folder.fetch(name, tmp_path / "copy")
        assert folder.size(name) == len(name.encode())
        assert folder.read(name) == (tmp_path / "copy").read_bytes() == name.encode()


def test_a_prefix_is_the_beginning_of_names(folder: Folder) -> None:
    """Also within a part of a name, and below folders; nothing there gives nothing."""
    for name in ("train-0.tar", "train-1.tar", "val-0.tar", "a/train-2.tar", "a/b/c"):
        folder.put(name, b"")

    assert [one.name for one in folder.list("train-")] == ["train-0.tar", "train-1.tar"]
    assert [one.name for one in folder.list("a/")] == ["a/b/c", "a/train-2.tar"]
    assert [one.name for one in folder.child("a").list()] == ["b/c", "train-2.tar"]
    assert list(folder.list("none")) == []


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/./b", "a\0b"])
def test_a_name_stays_below_its_folder(folder: Folder, name: str) -> None:
    """A name from a manifest cannot reach what lies beside the folder."""
    with pytest.raises(ValueError, match="is not the name of a file"):
        folder.read(name)


def test_what_is_missing_is_said_with_its_name(folder: Folder, tmp_path: Path) -> None:
    """By every way to read; to delete it is no error, and its size is None."""
    for read in (
        lambda: folder.read("none"),
        lambda: folder.fetch("none", tmp_path / "copy"),
        lambda: folder.read_into("none", 0, [memoryview(bytearray(1))]),
    ):
        with pytest.raises(Missing, match=r"none: .*no such .*; check"):
            read()
    folder.delete("none")

    assert folder.size("none") is None
    assert not (tmp_path / "copy").exists()


def test_a_file_is_replaced_and_deleted(folder: Folder) -> None:
    """The later bytes count; an empty file is a file."""
    folder.put("name", b"first")
    folder.put("name", b"")
    assert (folder.read("name"), folder.size("name")) == (b"", 0)
    folder.delete("name")

    assert folder.size("name") is None


def test_a_range_fills_buffers_in_order(folder: Folder) -> None:
    """However the memory is divided, also into none; a range beyond the end is refused."""
    folder.put("name", CONTENT)
    buffers = [bytearray(size) for size in (3, 0, 1000, 1)]
    folder.read_into("name", 17, [memoryview(buffer) for buffer in buffers])
    folder.read_into("name", 0, [])

    assert b"".join(buffers) == CONTENT[17 : 17 + 1004]
    for offset in (len(CONTENT) - 5, len(CONTENT) + 5):
        with pytest.raises(UserError, match=r"name: .*(ends before|shorter)"):
            folder.read_into("name", offset, [memoryview(bytearray(10))])


def test_only_the_first_writer_of_a_name_wins(folder: Folder) -> None:
    """The same bytes again are an attempt repeated; other bytes are a rival's."""
    for _ in range(2):
        folder.put("lock", b"writer 1", exclusive=True)
    with pytest.raises(Taken, match="lock: was written by another process"):
        folder.put("lock", b"writer 2", exclusive=True)

    assert folder.read("lock") == b"writer 1"
    assert [one.name for one in folder.list()] == ["lock"]


def test_an_equal_file_is_not_sent_again(folder: Folder, file: Path, s3_proxy: FaultyProxy) -> None:
    """An upload that is repeated costs a question; another content is sent."""
    assert folder.put_file("name", file, DIGEST)
    sent = s3_proxy.count("PUT")
    assert not folder.put_file("name", file, DIGEST)
    assert s3_proxy.count("PUT") == sent
    file.write_bytes(CONTENT[1:])

    assert folder.put_file("name", file, hashlib.sha256(CONTENT[1:]).hexdigest())
    assert folder.read("name") == CONTENT[1:]


def test_a_file_with_another_digest_is_not_sent(folder: Folder, file: Path) -> None:
    """A file that changed since it was hashed is refused, and nothing appears."""
    with pytest.raises(UserError, match=f"{file}: has the SHA-256 .* was expected"):
        folder.put_file("name", file, "0" * 64)

    assert list(folder.list()) == []


def test_a_copy_with_another_digest_does_not_appear(folder: Folder, tmp_path: Path) -> None:
    """The file that was at its place stays."""
    folder.put("name", CONTENT)
    (tmp_path / "copy").write_bytes(b"before")
    with pytest.raises(UserError, match=r"name: has the SHA-256 .* was expected"):
        folder.fetch("name", tmp_path / "copy", "0" * 64)

    assert (tmp_path / "copy").read_bytes() == b"before"
    assert not list(tmp_path.glob(f".*{TEMPORARY_SUFFIX}"))


def test_what_a_killed_process_left_on_a_disk_is_removed(tmp_path: Path) -> None:
    """It is never listed, and goes when the next job starts."""
    folder = open_folder(str(tmp_path / "folder"))
    folder.put("below/name", b"x")
    left = tmp_path / "folder" / "below" / f".name.0123{TEMPORARY_SUFFIX}"
    left.write_bytes(b"half")

    assert [one.name for one in folder.list()] == ["below/name"]
    assert (folder.abort_leftovers(), folder.abort_leftovers()) == (1, 0)
    assert folder.read("below/name") == b"x"
    assert not left.exists()


def test_a_pickled_folder_is_the_same_folder(folder: Folder) -> None:
    """It holds names only, and its URI opens it."""
    folder.child("below").put("name", b"x")

    assert pickle.loads(pickle.dumps(folder)) == folder == open_folder(folder.uri)
    assert open_folder(folder.child("below").uri).read("name") == b"x"


def test_large_files_go_in_parts(
    folder: Folder, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up and down in parts, whose memory is bounded however long the file is."""
    part = 5 << 20  # the least that S3 takes
    for module, name, value in (
        (uploading, "PART", part),
        (uploading, "THREADS", 2),
        (reading, "PART", part),
        (reading, "THREADS", 2),
    ):
        monkeypatch.setattr(module, name, value)
    use(monkeypatch, s3_server.endpoint)  # the proxy's memory is not counted
    file = tmp_path / "large"
    file.write_bytes(CONTENT * 4000 + b"end")  # 40 MB
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    folder.size("large")  # which makes the client
    tracemalloc.start()
    try:
        assert folder.put_file("large", file, digest)
        assert not folder.put_file("large", file, digest)
        folder.fetch("large", tmp_path / "copy")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    assert peak < 6 * part < 40e6
    assert [one.name for one in folder.list()] == ["large"]


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3:/bucket/x", "two slashes"),
        ("s3:bucket", "two slashes"),
        ("S3://bucket/x", "small letters"),
        ("gs://bucket/x", "other storage than S3's"),
        ("https://bucket.s3.amazonaws.com/x", "other storage than S3's"),
        ("s3://", "'' is no name of a bucket"),
        ("s3:///x", "two slashes"),
        ("s3://a b/x", "'a b' is no name of a bucket"),
        ("s3://key:secret@bucket/x", "a URI holds no keys"),
        ("s3://bucket//x", "a part of the prefix is empty"),
        ("s3://bucket/a/../b", "a part of the prefix is empty, '.' or '..'"),
    ],
)
def test_a_malformed_uri_is_refused_with_the_right_form(uri: str, said: str) -> None:
    """Before anything is asked of a server."""
    with pytest.raises(UsageError, match=r"s3://bucket/prefix|without such parts") as refused:
        open_folder(uri)

    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a b/c%20d+e?#/", "s3://bucket/a b/c%20d+e?#"),
        ("relative/path", "relative/path"),
        ("run:1", "run:1"),
    ],
)
def test_a_folder_has_the_uri_that_names_it(uri: str, found: str) -> None:
    """Nothing behind the bucket is decoded; a slash at the end says nothing."""
    assert open_folder(uri).uri == found


def test_a_key_that_is_too_long_is_refused() -> None:
    """S3 counts bytes, and the prefix."""
    with pytest.raises(UsageError, match=r"1204 bytes behind the bucket, and S3 allows 1024"):
        open_folder("s3://tests/" + "p" * 200).size("\u00e9" * 500 + "abc")
