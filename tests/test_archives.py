"""Nothing in an archive is lost unsaid: it is an image, or it is ignored and named, or damage."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.archives import tars
from datasets.archives.archive import Archive, forget_copies
from datasets.sources import Listing, list_images, read
from datasets.unusable import UnreadableImage
from infra.errors import UsageError, UserError
from tests.conftest import Pictures
from tests.test_sources import contents, tar

BLOCK = 512
COUNT = 10
MEMBER = 3 * BLOCK  # a header and two blocks
WHOLE = COUNT * MEMBER


def body(number: int, size: int = 2 * BLOCK - 30) -> bytes:
    """Return the bytes of a member, which no other member has."""
    return np.random.default_rng(number).integers(1, 33, size, dtype=np.uint8).tobytes()


def ten() -> bytearray:
    """Return a tar of ten members of three blocks each, and its end mark."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(COUNT):
            info = tarfile.TarInfo(f"{number:03}.jpg")
            info.size = len(body(number))
            archive.addfile(info, io.BytesIO(body(number)))
    return bytearray(buffer.getvalue())


def tar_of(*members: tuple[str, bytes | tuple[bytes, str]], encoding: str = "utf-8") -> bytes:
    """Pack members: (name, content), or (name, (type of link, target)), or (name, (type, ""))."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding=encoding) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                archive.addfile(info)
    return buffer.getvalue()


def listing(folder: Path, content: bytes, name: str = "set.tar") -> Listing:
    """Write an archive and list it."""
    (folder / name).write_bytes(content)
    return list_images([str(folder / name)], folder / "kept")


def damage(found: Listing) -> list[str]:
    """Return what is said of damage."""
    return [thing.detail for thing in found.ignored if thing.kind == "damage"]


def numbers(found: Listing) -> list[int]:
    """Return the numbers of the members that were found, whose bytes are checked."""
    for ref in found.images:
        assert read(ref) == body(int(ref.key))
    return [int(ref.key) for ref in found.images]


def hole(data: bytearray, start: int, stop: int) -> bytes:
    """Overwrite a range with zeros."""
    data[start:stop] = bytes(stop - start)
    return bytes(data)


def rubbish(data: bytearray, start: int, stop: int) -> bytes:
    """Overwrite a range with bytes that are no header."""
    data[start:stop] = body(99, stop - start)
    return bytes(data)


LONG = "x" * 150 + ".jpg"  # a name that takes a header of its own


def long_name_then_damage() -> bytes:
    """Return a tar in which the header after a long name is damaged."""
    data = bytearray(tar_of(("000.jpg", body(0)), (LONG, body(1)), ("002.jpg", body(2))))
    header = data.index(b"ustar", MEMBER + 2 * BLOCK) // BLOCK * BLOCK
    data[header] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "left", "said"),
    [
        (bytes(ten()), range(10), []),
        (
            rubbish(ten(), 5 * MEMBER, 5 * MEMBER + 8),
            [0, 1, 2, 3, 4, 6, 7, 8, 9],
            ["1,536 bytes at offset 7,680 belong to no member that can be read"],
        ),
        (
            hole(ten(), 3 * MEMBER, 6 * MEMBER),
            [0, 1, 2, 6, 7, 8, 9],
            ["4,608 bytes at offset 4,608 are 0"],
        ),
        (
            hole(ten(), 3 * MEMBER, 6 * MEMBER - BLOCK),
            [0, 1, 2, 6, 7, 8, 9],
            ["4,608 bytes at offset 4,608 belong to no member that can be read"],
        ),
        (
            rubbish(ten(), 0, 8),
            range(1, 10),
            ["1,536 bytes at offset 0 belong to no member that can be read"],
        ),
        (
            rubbish(ten(), 9 * MEMBER, 9 * MEMBER + 8),
            range(9),
            ["the last 6,656 bytes, from offset 13,824, belong to no member that can be read"],
        ),
        (
            bytes(ten()[: 6 * MEMBER]),
            range(6),
            ["it ends at offset 9,216 without an end mark, so more may have followed"],
        ),
        (
            bytes(ten()[: WHOLE + BLOCK]),
            range(10),
            ["it ends at offset 15,872 without an end mark"],
        ),
        (
            bytes(ten()) + bytes(ten()[: 2 * MEMBER]),
            None,
            None,
        ),
        (
            bytes(ten()) + body(7, 3000),
            range(10),
            ["the last 8,120 bytes, from offset 15,360, belong to no member"],
        ),
    ],
    ids=[
        *("whole", "header", "hole", "hole-to-within-a-member", "first-header", "last-header"),
        *("cut-at-a-member", "half-an-end-mark", "two-in-one", "rubbish-after-the-end"),
    ],
)
def test_damage_to_a_tar_is_said_and_costs_nothing_else(
    tmp_path: Path, content: bytes, left: range | list[int] | None, said: list[str] | None
) -> None:
    """Every member outside the damage is read; the place and the length of the damage are said."""
    if left is None or said is None:  # the second has the names of the first: the last one counts
        found = listing(tmp_path, content)
        assert numbers(found) == list(range(10))
        replaced = [thing.file for thing in found.ignored if thing.kind == "replaced_member"]
        assert replaced == ["000.jpg", "001.jpg"]
        return
    found = listing(tmp_path, content)

    assert numbers(found) == list(left)
    assert len(damage(found)) == len(said)
    for sentence, expected in zip(damage(found), said, strict=True):
        assert expected in sentence
    assert found.losses() == len(said)


def test_a_tar_that_is_cut_within_a_member_names_the_loss(tmp_path: Path) -> None:
    """The cut member is an image with a reason, and the archive is said to end within it."""
    found = listing(tmp_path, bytes(ten()[: 4 * MEMBER + BLOCK + 100]))

    assert damage(found) == ["it ends within its last member: 100 of 994 bytes are there"]
    assert [read(ref) for ref in found.images[:4]] == [body(number) for number in range(4)]
    with pytest.raises(UnreadableImage, match="damaged_member"):
        read(found.images[4])


def test_a_damaged_header_after_a_long_name_costs_one_member(tmp_path: Path) -> None:
    """Python's reader ends with an error there."""
    found = listing(tmp_path, long_name_then_damage())

    assert numbers(found) == [0, 2]
    assert len(damage(found)) == 1


def test_a_size_below_zero_ends(tmp_path: Path) -> None:
    """A PAX header may give one; tarfile would go back to where it was, for ever."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, size in enumerate(({}, {"size": "-2000"}, {})):
            info = tarfile.TarInfo(f"{number:03}.jpg")
            info.size, info.pax_headers = len(body(number)), size
            archive.addfile(info, io.BytesIO(body(number)))
    found = listing(tmp_path, buffer.getvalue())

    assert numbers(found) == [0, 2]
    assert damage(found) == ["2,560 bytes at offset 1,536 belong to no member that can be read"]


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, WHOLE - 1), st.integers(1, 255)), min_size=1, max_size=4),
    st.integers(0, 20480),
)
def test_whatever_happens_to_a_tar_costs_only_what_it_touches(
    changes: list[tuple[int, int]], kept: int
) -> None:
    """Flipped bytes and a cut: every member that they miss is found with its bytes."""
    data = ten()
    for place, value in changes:
        data[place] ^= value
    del data[kept:]
    found = {file.name: file for file in tars.contents(io.BytesIO(data)) if not file.ignored}
    for number in range(COUNT):
        first, after = number * MEMBER, (number + 1) * MEMBER
        if kept >= after and not any(first <= place < after for place, _ in changes):
            file = found[f"{number:03}.jpg"]
            assert data[file.offset : file.offset + file.size] == body(number)


def test_threads_read_a_tar_gz_at_once(tmp_path: Path) -> None:
    """Workers of a GPU decode ahead in threads, and each gets the bytes that it asked for."""
    members = [(f"{number:03}.jpg", body(number, 100_000)) for number in range(12)]
    found = listing(tmp_path, gzip.compress(tar_of(*members), 1), "set.tar.gz")
    with ThreadPoolExecutor(6) as pool:
        read_again = list(pool.map(read, found.images * 8))

    assert read_again == [content for _, content in members] * 8


def test_headers_for_all_members_are_no_damage(tmp_path: Path) -> None:
    """`git archive` begins with one; long names and times of PAX have headers of their own."""
    buffer = io.BytesIO()
    options = {"format": tarfile.PAX_FORMAT, "pax_headers": {"comment": "0123"}}
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:  # type: ignore[call-overload]
        for name in ("000.jpg", "é" * 120 + ".jpg"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(body(0)), 1.5
            archive.addfile(info, io.BytesIO(body(0)))
    found = listing(tmp_path, buffer.getvalue())

    assert [ref.key for ref in found.images] == ["000", "é" * 120]
    assert found.ignored == ()


def test_links_in_a_tar_are_what_they_stand_for(tmp_path: Path) -> None:
    """Hard and symbolic links have their target's bytes; others are named with the reason."""
    found = listing(
        tmp_path,
        tar_of(
            ("a/later.jpg", (tarfile.SYMTYPE, "../z.jpg")),
            ("a/0.jpg", body(0)),
            ("a/hard.jpg", (tarfile.LNKTYPE, "a/0.jpg")),
            ("a/soft.jpg", (tarfile.SYMTYPE, "hard.jpg")),
            ("a/gone.jpg", (tarfile.SYMTYPE, "nothing.jpg")),
            ("a/round.jpg", (tarfile.SYMTYPE, "round.jpg")),
            ("a/out.jpg", (tarfile.SYMTYPE, "/etc/hostname")),
            ("b", (tarfile.SYMTYPE, "a")),
            ("pipe.jpg", (tarfile.FIFOTYPE, "")),
            ("holes.jpg", (tarfile.GNUTYPE_SPARSE, "")),
            ("._a.jpg", b"a resource fork"),
            ("z.jpg", body(1)),
        ),
    )

    assert contents(found) == {
        "a/0": body(0),
        "a/hard": body(0),
        "a/soft": body(0),
        "a/later": body(1),
        "z": body(1),
    }
    assert {(thing.file, thing.kind) for thing in found.ignored} == {
        ("a/gone.jpg", "dangling_link"),
        ("a/round.jpg", "dangling_link"),
        ("a/out.jpg", "dangling_link"),
        ("b", "repeated_folder"),
        ("pipe.jpg", "special_file"),
        ("holes.jpg", "sparse_member"),
        ("._a.jpg", "hidden"),
    }


def test_no_name_in_an_archive_leads_out_of_the_set(tmp_path: Path) -> None:
    """Absolute names, "..", drives, backslashes, bytes that are no UTF-8: a safe key, and said."""
    names = ["/etc/a.jpg", "../../b.jpg", "C:\\c.jpg", "C:/d.jpg", "x/caf\udce9.jpg", "e\n.jpg"]
    found = listing(tmp_path, tar_of(*((name, body(0)) for name in names)))

    assert {ref.key: ref.file for ref in found.images} == {
        "etc/a": "/etc/a.jpg",
        "__/__/b": "../../b.jpg",
        "C__c": "C:\\c.jpg",
        "C_/d": "C:/d.jpg",
        "x/caf_xe9": "x/caf\\xe9.jpg",
        "e_": "e\n.jpg",
    }
    assert found.renamed() == 6
    assert found.ignored == ()


def test_two_names_of_one_key_are_refused_by_name(tmp_path: Path) -> None:
    """What escaping makes equal is not quietly one image."""
    with pytest.raises(UsageError, match=r"a\.b\.jpg of .* a_b\.jpg of .*rename"):
        listing(tmp_path, tar_of(("a.b.jpg", body(0)), ("a_b.jpg", body(1))))


def zstd_of_two_frames(data: bytes) -> bytes:
    """Compress as parallel programs do: frames one after the other."""
    half = len(data) // 2
    return b"".join(zstandard.compress(part) for part in (data[:half], data[half:]))


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("set.tar.xz", lzma.compress),
        ("set.tar.zst", zstd_of_two_frames),
        ("set.tzst", zstandard.compress),
    ],
)
def test_compressed_archives_are_read_from_a_copy(
    tmp_path: Path, name: str, compress: Callable[[bytes], bytes]
) -> None:
    """The copy is made once, and again when it is needed after it was deleted."""
    found = listing(tmp_path, compress(bytes(ten())), name)
    assert numbers(found) == list(range(10))

    forget_copies(tmp_path / "kept")
    again = list_images([str(tmp_path / name)], tmp_path / "kept")
    assert again == found
    assert list((tmp_path / "kept").glob("*.tar")) == []
    with pytest.raises(UnreadableImage, match="vanished"):
        read(again.images[0])
    again.prepare()

    assert numbers(again) == list(range(10))


def test_no_room_for_the_copy_is_said_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length that a zstd frame states is compared with what is free."""
    usage = type(os)("usage")
    usage.free = 20_000  # type: ignore[attr-defined]
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)

    with pytest.raises(UserError, match=r"uncompressed copy in .*are free there"):
        listing(tmp_path, zstandard.compress(bytes(ten())), "set.tar.zst")


@pytest.mark.parametrize("kept", [0.6, 1.0])
def test_a_damaged_tar_gz_gives_what_comes_before_the_damage(tmp_path: Path, kept: float) -> None:
    """A download that was cut, and one with damaged bytes in the middle."""
    data = bytearray(gzip.compress(bytes(ten()), mtime=0))
    if kept == 1:
        data[len(data) * 3 // 5 : len(data) * 3 // 5 + 60] = bytes(60)
    found = listing(tmp_path, bytes(data[: int(kept * len(data))]), "set.tar.gz")

    good = [ref for ref in found.images if ref.key < "005"]
    assert [read(ref) for ref in good] == [body(number) for number in range(5)]
    assert len(damage(found)) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("set.tar", b"no archive at all" * 400),
        ("set.tar", b""),
        ("set.tar.gz", b"\x1f\x8bno archive"),
        ("set.tar.xz", b"no archive"),
        ("set.tar.zst", b"no archive"),
        ("set.zip", b"PK\x03\x04no archive"),
        ("set.tar.bz2", bz2.compress(b"")),
    ],
)
def test_an_archive_in_which_nothing_is_found_is_refused(
    tmp_path: Path, name: str, content: bytes
) -> None:
    """Where the user named it; inside a folder it is one of the things that are ignored."""
    with pytest.raises(UsageError, match=r"a broken archive|neither a folder"):
        listing(tmp_path, content, name)


def zip_of(path: Path, *members: tuple[str, bytes]) -> None:
    """Write a zip without compression, so that a member's bytes stand in it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)


def flag(data: bytes, offset_local: int, offset_central: int, value: bytes) -> bytes:
    """Overwrite a field of the first member's two headers."""
    changed = bytearray(data)
    central = changed.index(b"PK\x01\x02")
    for place in (offset_local, central + offset_central):
        changed[place : place + len(value)] = value
    return bytes(changed)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.replace(body(0)[:4], b"\0\0\0\0"), "damaged_member"),
        (lambda data: b"PKxx" + data[4:], "damaged_member"),
        (lambda data: flag(data, 6, 8, b"\x01"), "encrypted"),
        (lambda data: flag(data, 8, 10, b"\x09\x00"), "unsupported_compression"),
        (lambda data: flag(data, 8, 10, b"\x08\x00"), "damaged_member"),
    ],
    ids=["checksum", "header", "password", "deflate64", "stream"],
)
def test_a_member_of_a_zip_that_cannot_be_read_has_a_reason(
    tmp_path: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    """BadZipFile, RuntimeError, NotImplementedError and zlib.error become one exception."""
    path = tmp_path / "set.zip"
    zip_of(path, ("000.jpg", body(0)), ("001.jpg", body(1)))
    found = listing(tmp_path, change(path.read_bytes()), "set.zip")

    assert [ref.key for ref in found.images] == ["000", "001"]
    with pytest.raises(UnreadableImage) as caught:
        read(found.images[0])
    assert caught.value.reason == reason
    assert read(found.images[1]) == body(1)


def test_links_in_a_zip_are_followed(tmp_path: Path) -> None:
    """`zip -y` keeps a link as a member whose content is the target's name."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/000.jpg", body(0))
        for name, target in (("a/link.jpg", "000.jpg"), ("gone.jpg", "nothing.jpg")):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o120777 << 16
            archive.writestr(info, target)
    found = list_images([str(path)], tmp_path / "kept")

    assert contents(found) == {"a/000": body(0), "a/link": body(0)}
    assert [(thing.file, thing.kind) for thing in found.ignored] == [("gone.jpg", "dangling_link")]


def test_archives_inside_folders_are_read_under_their_path(
    pictures: Pictures, tmp_path: Path
) -> None:
    """Their keys begin with the archive's path; archives inside archives are counted."""
    folder = pictures(2)
    inside = folder / "packs"
    inside.mkdir()
    (inside / "v1.0.tar").write_bytes(tar_of(("x/000.jpg", body(0)), ("more.zip", b"PK")))
    (inside / "empty.tar").write_bytes(bytes(10240))
    found = list_images([f"named={folder}"], tmp_path / "kept")

    assert found.images[0].key == "named/packs/v1_0/x/000"
    assert found.images[0].file == "packs/v1.0.tar/x/000.jpg"
    assert read(found.images[0]) == body(0)
    assert [(thing.file, thing.kind) for thing in found.ignored] == [
        ("packs/empty.tar", "unreadable_archive"),
        ("packs/v1.0.tar/more.zip", "nested_archive"),
    ]


def test_a_listing_is_kept_and_not_made_again(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an archive with the same path, length and time only; several are listed at once."""
    archives = [tar(pictures(2, name=name), tmp_path / f"{name}.tar.gz", "w:gz") for name in "ab"]
    inputs = [f"{path.name[0]}={path}" for path in archives]
    first = list_images(inputs, tmp_path / "kept")
    monkeypatch.setattr(Archive, "_list", lambda self: pytest.fail(f"{self.path} again"))

    assert list_images(inputs, tmp_path / "kept") == first
    os.utime(archives[1], ns=(1, 1))
    with pytest.raises(pytest.fail.Exception, match=r"b\.tar\.gz again"):
        list_images(inputs, tmp_path / "kept")
