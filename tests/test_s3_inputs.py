"""Photographs and archives in a bucket: what a folder on a disk gives, and nothing lost unsaid."""

import dataclasses
import hashlib
import io
import itertools
import lzma
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from datasets import sources
from datasets.archives.archive import forget_copies
from datasets.sources import ImageRef, Listing, list_images, read
from datasets.unusable import UnreadableImage
from infra.errors import UsageError, UserError
from infra.paths import AnyPath, path_of
from infra.s3.client import forget
from pipelines.curate import exclusion
from pipelines.curate.job import Curation
from tests.conftest import Pictures, free_port
from tests.support.curation_jobs import InProcess, config, published, run
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.s3_server import BUCKET, S3Server
from tests.test_sources import contents, packed, tar

NAMES = (
    "plain.png",
    "with space.png",
    "plus+and%20percent%.png",
    "caf\u00e9.png",  # one code point
    "cafe\u0301.png",  # the same letter in two
    "more/deep/er.PNG",
    "more/question?hash#amp&.png",
    "\u5bb6/\U0001f600.png",
    "notes.txt",
    ".hidden.png",
    ".thumbs/a.png",
    ".thumbs/b.png",
    "__MACOSX/a.png",
)


@pytest.fixture
def bucket(
    s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AnyPath]:
    """An empty place in the bucket; copies of archives go to a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    s3_proxy.harmless()
    yield path_of(f"s3://{BUCKET}/{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]}")
    s3_proxy.harmless()
    sources._forget_open()


def uploaded(folder: Path, target: AnyPath) -> str:
    """Put a folder's files below a prefix of the same name; returns its URI."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        put(target / folder.name / path.relative_to(folder).as_posix(), path.read_bytes())
    return str(target / folder.name)


def put(path: AnyPath, data: bytes) -> None:
    """Write an object."""
    path.parent.folder.put(path.name, data)  # type: ignore[union-attr]


def places(listing: Listing) -> list[ImageRef]:
    """Return where images are, but for what a bucket has another of."""
    return [dataclasses.replace(ref, path="", stamp=0, seek_index=None) for ref in listing.images]


def test_a_prefix_gives_what_a_folder_of_its_names_gives(
    bucket: AnyPath, s3_server: S3Server, tmp_path: Path
) -> None:
    """Keys, places, bytes, and what is ignored, whatever the characters; so with a NAME."""
    folder = tmp_path / "photos"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    uri = uploaded(folder, bucket)
    s3_server.client().put_object(Bucket=BUCKET, Key=f"{uri.partition(BUCKET)[2][1:]}/empty/")
    for name in ("", "ffhq="):
        found = list_images([name + uri], tmp_path / "kept")
        local = list_images([name + str(folder)], tmp_path / "kept")
        assert places(found) == places(local)
        assert found.ignored == local.ignored
        assert contents(found) == contents(local)
        assert found.images[0].path.startswith("s3://")


def test_a_single_image_is_an_input(bucket: AnyPath, tmp_path: Path) -> None:
    """Its stamp is that which it has in its folder, and its origin its name."""
    put(bucket / "photos" / "a.jpg", b"bytes")
    (alone,) = list_images([str(bucket / "photos" / "a.jpg")], tmp_path).images
    (below,) = list_images([str(bucket / "photos")], tmp_path).images
    assert (alone.key, alone.origin, alone.size) == ("a", "a.jpg", 5)
    assert (alone.stamp, read(alone)) == (below.stamp, b"bytes")


def test_only_the_prefix_is_listed(bucket: AnyPath, s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    """What lies beside it is not asked for, even if its name begins so."""
    for name in ("photos/a.jpg", "photos2/b.jpg", "photos.jpg", "other/c.jpg"):
        put(bucket / name, b"bytes")
    s3_proxy.seen.clear()
    assert [ref.key for ref in list_images([str(bucket / "photos")], tmp_path).images] == ["a"]
    asked = [seen.path for seen in s3_proxy.seen if "list-type" in seen.path]
    assert asked
    assert all("photos%2F" in path for path in asked)


@pytest.mark.parametrize("name", ["s3://tests/none", "s3://tests/none.jpg", "x=s3://tests/none"])
def test_nothing_under_a_name_is_refused(bucket: AnyPath, tmp_path: Path, name: str) -> None:
    """With the text that was given."""
    with pytest.raises(UsageError, match=f"--input {name}: no such file or folder"):
        list_images([name], tmp_path)


def test_a_key_that_no_file_can_have_is_counted(
    bucket: AnyPath, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    """An image under it would be lost unsaid; the empty object of a folder is nothing.

    That a key is the beginning of another is no matter: both are images.
    """
    put(bucket / "photos" / "a.jpg", b"bytes")
    keys = {"photos//b.jpg": 7, "photos/../c.jpg": 7, "photos/d.jpg/": 7, "photos/e/": 0}
    prefix = str(bucket).rpartition("/")[2]
    rows = "".join(
        f"<Contents><Key>{prefix}/{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;1&quot;</ETag><Size>{size}</Size></Contents>"
        for key, size in {"photos/a.jpg": 5, "photos/a.jpg/f.jpg": 5, **keys}.items()
    )
    page = f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
    # SeaweedFS keeps no such keys; Amazon's store does, and answers so.
    s3_proxy.faults = [Fault(9, path="list-type=2", status=200, body=page)]
    found = list_images([str(bucket / "photos")], tmp_path)
    assert [ref.key for ref in found.images] == ["a", "a_jpg/f"]
    named = [(thing.file, thing.kind) for thing in found.ignored]
    assert named == [(name, "impossible_name") for name in ("../c.jpg", "/b.jpg", "d.jpg/")]
    assert found.losses() == 3


def test_a_replaced_object_is_noticed(bucket: AnyPath, tmp_path: Path) -> None:
    """By other bytes of the same length, even within a second; the same bytes change nothing."""

    def listed() -> Listing:
        return list_images([str(bucket / "photos")], tmp_path)

    put(bucket / "photos" / "a.jpg", b"first")
    first = listed()
    put(bucket / "photos" / "a.jpg", b"first")
    assert listed().fingerprint() == first.fingerprint()
    put(bucket / "photos" / "a.jpg", b"other")
    assert listed().fingerprint() != first.fingerprint()


def denied(times: int, path: str) -> Fault:
    """Refuse to read objects of a name."""
    return Fault(times, "GET", path, status=403, code="AccessDenied")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no time pass between attempts."""
    monkeypatch.setattr("infra.s3.retries.wait", lambda _: None)


def test_what_becomes_of_an_object_after_it_was_listed(
    bucket: AnyPath, s3_proxy: FaultyProxy, tmp_path: Path, at_once: None
) -> None:
    """Deleted, shortened, forbidden: each is one image's reason, and may pass."""
    for name in ("a", "b", "c", "d"):
        put(bucket / f"{name}.jpg", b"bytes")
    refs = list_images([str(bucket)], tmp_path).images
    (bucket / "a.jpg").unlink()
    put(bucket / "b.jpg", b"less")
    s3_proxy.faults = [denied(99, "/c.jpg")]
    reasons = []
    for ref in refs[:3]:
        with pytest.raises(UnreadableImage) as caught:
            read(ref)
        reasons.append(caught.value.reason)
    assert reasons == ["vanished", "changed", "unreadable"]
    assert s3_proxy.count("GET", "/c.jpg") == 4  # bounded: once, and three times more
    assert read(refs[3]) == b"bytes"


def test_images_refused_one_after_another_end_the_job(
    bucket: AnyPath,
    s3_proxy: FaultyProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_once: None,
) -> None:
    """Without the permission a million rows would be `unreadable`; one that is read ends a row."""
    monkeypatch.setattr(sources, "MOST_REFUSED", 2)
    for name in ("a", "b", "c", "d"):
        put(bucket / f"{name}.jpg", b"bytes")
    a, b, c, d = list_images([str(bucket)], tmp_path).images
    s3_proxy.faults = [denied(99, "/a.jpg"), denied(99, "/c.jpg"), denied(99, "/d.jpg")]
    for refused, served in ((a, b), (c, b)):
        with pytest.raises(UnreadableImage, match="unreadable"):
            read(refused)
        assert read(served) == b"bytes"
    with pytest.raises(UnreadableImage, match="unreadable"):
        read(c)
    with pytest.raises(UserError, match=r"s3:GetObject.*So it was with 2 images one after") as end:
        read(d)
    assert not isinstance(end.value, UnreadableImage)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(99, "GET", "/a.jpg", status=400, code="ExpiredToken"), "credentials have expired"),
        (Fault(99, "GET", "/a.jpg", status=503, code="SlowDown"), "answered with 503"),
        (Fault(99, "GET", "/a.jpg", reset=True), "the connection to .* broke"),
    ],
)
def test_a_store_that_fails_is_no_fault_of_an_image(
    bucket: AnyPath,
    s3_proxy: FaultyProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    said: str,
) -> None:
    """The job ends with what the store said, instead of a row for each image."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    put(bucket / "a.jpg", b"bytes")
    (ref,) = list_images([str(bucket)], tmp_path).images
    s3_proxy.faults = [fault]
    with pytest.raises(UserError, match=said):
        read(ref)
    forget()  # a client that has met a busy server asks less often


def zst(folder: Path, target: Path) -> Path:
    """Pack a folder's files into a .tar.zst."""
    plain = tar(folder, target.with_name("plain.tar"), "w").read_bytes()
    target.write_bytes(zstandard.ZstdCompressor().compress(plain))
    return target


def xz(folder: Path, target: Path) -> Path:
    """Pack a folder's files into a .tar.xz."""
    target.write_bytes(lzma.compress(tar(folder, target.with_name("plain.tar"), "w").read_bytes()))
    return target


def cut_gz(folder: Path, target: Path) -> Path:
    """Pack a folder's files into a .tar.gz whose compressed data are damaged in the middle."""
    data = bytearray(tar(folder, target, "w:gz").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    target.write_bytes(data)
    return target


def cut_tar(folder: Path, target: Path) -> Path:
    """Pack a folder's files into a tar that ends within a member."""
    data = tar(folder, target, "w").read_bytes()
    target.write_bytes(data[: len(data) // 2])
    return target


def test_an_archive_that_may_not_be_read_is_named(
    bucket: AnyPath, s3_proxy: FaultyProxy, pictures: Pictures, tmp_path: Path, at_once: None
) -> None:
    """In a folder it is a place that may hide images; given by itself it is refused."""
    put(bucket / "in" / "set.tar", tar(pictures(2), tmp_path / "set.tar", "w").read_bytes())
    put(bucket / "in" / "a.jpg", b"bytes")
    s3_proxy.faults = [denied(99, "/set.tar"), Fault(99, "HEAD", "/set.tar", status=403)]
    found = list_images([str(bucket / "in")], tmp_path / "kept")
    assert [(thing.file, thing.kind) for thing in found.ignored] == [
        ("set.tar", "unreadable_archive")
    ]
    assert "s3:GetObject" in found.ignored[0].detail
    with pytest.raises(UserError, match="s3:GetObject"):
        list_images([str(bucket / "in" / "set.tar")], tmp_path / "kept")


ARCHIVES: dict[str, Callable[[Path, Path], Path]] = {
    "set.tar": lambda folder, target: tar(folder, target, "w"),
    "set.tar.gz": lambda folder, target: tar(folder, target, "w:gz"),
    "set.zip": packed,
    "set.tar.zst": zst,
    "set.tar.xz": xz,
    "damaged.tar.gz": cut_gz,
    "cut.tar": cut_tar,
}


def outcomes(listing: Listing) -> dict[str, bytes | str]:
    """Return the bytes of every image, or the reason why it has none."""
    found: dict[str, bytes | str] = {}
    for ref in listing.images:
        try:
            found[ref.key] = read(ref)
        except UnreadableImage as error:
            found[ref.key] = error.reason
    return found


@pytest.mark.parametrize("name", list(ARCHIVES))
def test_an_archive_is_read_in_place_as_on_a_disk(
    bucket: AnyPath,
    pictures: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """The same places, bytes and damage; also on another machine, and after copies are gone."""
    path = ARCHIVES[name](pictures(7, 40, 30), tmp_path / name)
    put(bucket / "in" / name, path.read_bytes())
    local = list_images([str(path)], tmp_path / "kept")
    kept = bucket / "out" / "sources"
    found = list_images([str(bucket / "in" / name)], kept)
    assert places(found) == places(local)
    assert found.ignored == local.ignored
    assert outcomes(found) == outcomes(local)
    assert places(list_images([str(bucket / "in")], kept)) != []  # inside a folder

    copies = list((tmp_path / "cache").rglob("*.tar"))
    assert len(copies) == (name.endswith((".zst", ".xz")) or name == "damaged.tar.gz")
    forget_copies(kept)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    sources._forget_open()
    assert outcomes(found) == outcomes(local)
    assert list_images([str(bucket / "in" / name)], kept) == found


@pytest.mark.parametrize("name", ["set.tar.zst", "set.tar.gz"])
def test_an_archive_on_a_disk_goes_with_an_output_in_a_bucket(
    bucket: AnyPath, pictures: Pictures, tmp_path: Path, name: str
) -> None:
    """Each machine that sees the archive makes its own copy, or reads it by the index there."""
    path = ARCHIVES[name](pictures(3, 40, 30), tmp_path / name)
    found = list_images([str(path)], bucket / "sources")
    assert outcomes(found) == outcomes(list_images([str(path)], tmp_path / "kept"))


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.zip", "set.tar.zst"])
def test_an_archive_replaced_after_it_was_listed_gives_no_wrong_image(
    bucket: AnyPath, pictures: Pictures, tmp_path: Path, name: str
) -> None:
    """What is read is what was listed, or there is a reason; the next listing has the new ones."""
    first = ARCHIVES[name](pictures(3, 40, 30, "first"), tmp_path / name)
    put(bucket / name, first.read_bytes())
    kept = bucket / "sources"
    listing = list_images([str(bucket / name)], kept)
    right = outcomes(listing)
    forget_copies(kept)
    sources._forget_open()
    put(bucket / name, ARCHIVES[name](pictures(3, 90, 70, "second"), tmp_path / name).read_bytes())
    left = outcomes(listing)
    assert {type(value) for value in left.values()} <= {str, bytes}
    if name in ("set.tar.zst", "set.zip"):
        assert set(left.values()) <= {"changed", "damaged_member", "unreadable"}
    again = outcomes(list_images([str(bucket / name)], kept))
    assert again != right
    assert again == outcomes(list_images([str(tmp_path / name)], tmp_path / "kept"))


def members(count: int, size: int) -> bytes:
    """Return a tar of images of random bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(count):
            info = tarfile.TarInfo(f"{number:04}.jpg")
            info.size = size
            archive.addfile(info, io.BytesIO(np.random.default_rng(number).bytes(size)))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("count", "size", "share"),
    [
        (1000, 3_000, 1.1),  # read through: 3.5 MB in windows of 64 KiB, 128 KiB, ...
        (6, 3_000_000, 0.35),  # passed over: 64 KiB for each of 18 MB, and the last one whole
    ],
)
def test_listing_a_tar_takes_few_requests_and_few_bytes(
    bucket: AnyPath,
    s3_proxy: FaultyProxy,
    tmp_path: Path,
    count: int,
    size: int,
    share: float,
) -> None:
    """Small members are read through by growing windows; long ones are passed over."""
    data = members(count, size)
    put(bucket / "set.tar", data)
    s3_proxy.seen.clear()
    assert len(list_images([str(bucket / "set.tar")], tmp_path).images) == count
    ranges = [
        seen.headers["Range"].removeprefix("bytes=").split("-")
        for seen in s3_proxy.seen
        if seen.method == "GET" and "Range" in seen.headers
    ]
    assert len(ranges) <= 12
    assert sum(int(end) + 1 - int(start) for start, end in ranges) <= share * len(data)


@pytest.mark.parametrize("name", ["set.tar", "set.zip"])
def test_a_member_is_read_by_one_request(
    bucket: AnyPath, pictures: Pictures, s3_proxy: FaultyProxy, tmp_path: Path, name: str
) -> None:
    """The table of contents of a zip is read once by each process."""
    put(bucket / name, ARCHIVES[name](pictures(4, 300, 200), tmp_path / name).read_bytes())
    refs = list_images([str(bucket / name)], tmp_path / "kept").images
    read(refs[0])
    s3_proxy.seen.clear()
    for ref in refs[1:]:
        read(ref)
    assert len(s3_proxy.seen) == 3


class StoreGoes(InProcess):
    """Takes the store away while images are scored: nobody listens at its address."""

    def run(self, name: str, *rest: Any) -> Iterator[dict[str, Any]]:
        """Do a stage, of which the store sees the first unit."""
        try:
            with pytest.MonkeyPatch.context() as patch:
                for number, result in enumerate(super().run(name, *rest)):
                    if number == 0:
                        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
                        forget()
                    yield result
        finally:
            forget()


def test_a_set_from_a_bucket_is_that_of_a_folder_byte_for_byte(
    bucket: AnyPath, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the store was away: photographs, an archive, a list for val, excluded ones."""
    folder = pictures(5, 100, 80)
    xz(pictures(3, 110, 80, "more"), folder / "packed.tar.xz")
    (folder / "plain.tar").unlink()
    (folder / "notes.txt").write_text("no image")
    excluded = pictures(1, 100, 80, "test")
    (tmp_path / "val.txt").write_text("photo-01\npacked/photo-00\n")
    fields: dict[str, Any] = {"val_fraction": 0.0}
    local = {"val_list": str(tmp_path / "val.txt"), "exclude": (f"celeba={excluded}",)}
    run(folder, tmp_path / "set", **fields, **local)

    uri = uploaded(folder, bucket)
    put(bucket / "val.txt", (tmp_path / "val.txt").read_bytes())
    test = f"celeba={uploaded(excluded, bucket)}"
    there = {"val_list": str(bucket / "val.txt"), "exclude": (test,)}
    job = Curation(config(uri, bucket / "set", **fields, **there))
    seconds = itertools.count()
    monkeypatch.setattr("infra.s3.retries.wait", lambda _: None)
    monkeypatch.setattr("infra.s3.retries.clock", lambda: float(next(seconds)))
    with pytest.raises(UserError, match=r"cannot be reached; check that the store is up"):
        job.run(StoreGoes())
    job.run(InProcess())
    assert published(bucket / "set") == published(tmp_path / "set")

    found, same = (
        exclusion.read_excluded([str(at / "set")], tmp_path) for at in (bucket, tmp_path)
    )
    assert found.equals(same)
    assert found.num_rows > 0
