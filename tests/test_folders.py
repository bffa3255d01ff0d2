"""Whatever lies in a folder is an image, or is ignored and named; names become safe keys."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.names import is_valid_prefix, sample_key, shown
from datasets.sources import ignored_table, list_images, read
from datasets.unusable import UnreadableImage
from infra.errors import UsageError
from tests.conftest import Pictures


def test_everything_in_a_folder_is_taken_or_named(pictures: Pictures, tmp_path: Path) -> None:
    """Links to files and folders, links to nothing and in circles, pipes, hidden files."""
    folder = pictures(3)  # photo-00, photo-01, more/photo-02
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.png").write_bytes((folder / "photo-00.png").read_bytes())
    (folder / "linked.png").symlink_to("photo-01.png")
    (folder / "elsewhere").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "again").symlink_to("more", target_is_directory=True)
    (folder / "gone.png").symlink_to("nothing.png")
    (folder / "round.png").symlink_to("round.png")
    os.mkfifo(folder / "pipe.png")
    (folder / ".hidden").mkdir()
    (folder / "notes.txt").write_text("hello")
    found = list_images([str(folder)], tmp_path / "kept")

    assert [ref.key for ref in found.images] == [
        *("elsewhere/far", "linked", "more/photo-02", "photo-00", "photo-01"),
    ]
    assert read(found.images[1]) == (folder / "photo-01.png").read_bytes()
    rows = ignored_table(found).to_pylist()
    assert [(row["file"], row["kind"]) for row in rows] == [
        (".hidden", "hidden"),
        ("again", "repeated_folder"),
        ("gone.png", "dangling_link"),
        ("notes.txt", "other_file"),
        ("pipe.png", "special_file"),
        ("round.png", "dangling_link"),
    ]
    assert rows[3] == {
        **{"origin": "raw", "file": "notes.txt", "kind": "other_file"},
        **{"detail": "", "bytes": 5},
    }


@pytest.mark.parametrize("names", [("link", "real"), ("zz", "real")])
def test_a_folder_keeps_its_own_name_beside_a_link_to_it(
    pictures: Pictures, tmp_path: Path, names: tuple[str, str]
) -> None:
    """Whether the link's name comes before or after, and whatever order the file system has."""
    link, real = names
    folder = pictures(1).rename(tmp_path / real).parent
    (folder / link).symlink_to(real, target_is_directory=True)
    found = list_images([str(folder)], tmp_path / "kept")

    assert [ref.key for ref in found.images] == [f"{real}/photo-00"]


def test_a_folder_that_cannot_be_listed_is_named(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hide images, so it counts as a loss; the input itself is refused."""
    folder = pictures(3)
    listed = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "more":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = list_images([str(folder)], tmp_path / "kept")

    assert [ref.key for ref in found.images] == ["photo-00", "photo-01"]
    assert [(thing.file, thing.kind) for thing in found.ignored] == [("more", "unreadable_folder")]
    assert found.losses() == 1
    with pytest.raises(UsageError, match="permission denied"):
        list_images([str(folder / "more")], tmp_path / "kept")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(errno.EACCES, "denied"), "unreadable"),
        (OSError(errno.EIO, "input/output error"), "unreadable"),
        (OSError(errno.ESTALE, "stale file handle"), "unreadable"),
        (FileNotFoundError(errno.ENOENT, "gone"), "vanished"),
        (MemoryError(), "out_of_memory"),
        (RecursionError("too deep"), "damaged_member"),
    ],
)
def test_whatever_reading_raises_has_a_reason(
    pictures: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    reason: str,
) -> None:
    """An image that cannot be read ends no job."""
    (ref,) = list_images([str(pictures(1))], tmp_path).images

    def fail(*_: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(UnreadableImage) as caught:
        read(ref)

    assert caught.value.reason == reason


def test_ctrl_c_while_reading_is_no_reason(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends the program is passed on."""
    (ref,) = list_images([str(pictures(1))], tmp_path).images

    def interrupt(*_: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read(ref)


def test_a_file_that_grew_is_not_read_in_part(pictures: Pictures, tmp_path: Path) -> None:
    """Its first bytes would be a picture that is cut."""
    (ref,) = list_images([str(pictures(1))], tmp_path).images
    with Path(ref.path).open("ab") as file:
        file.write(b"more")

    with pytest.raises(UnreadableImage, match="changed"):
        read(ref)


@pytest.mark.parametrize(
    "name", ["v1.0", "..", "../x", "/x", "x/", "a//b", "a\\b", "C:", "", "x\n", "."]
)
def test_a_name_that_would_make_bad_keys_is_refused(
    pictures: Pictures, tmp_path: Path, name: str
) -> None:
    """The message says what a NAME may be."""
    assert not is_valid_prefix(name)
    with pytest.raises(UsageError, match=r"no such file.*is no NAME: a NAME has no dot"):
        list_images([f"{name}={pictures(1)}"], tmp_path)


def test_a_path_with_an_equals_sign_is_a_path(pictures: Pictures, tmp_path: Path) -> None:
    """If it exists as one, or if what stands before the sign is no NAME."""
    plain, dotted = pictures(1, name="a=b"), pictures(1, name="v1.0=c")

    assert [ref.key for ref in list_images([str(plain)], tmp_path).images] == ["photo-00"]
    assert [ref.key for ref in list_images([str(dotted)], tmp_path).images] == ["photo-00"]
    named = list_images([f"x={plain}"], tmp_path).images
    assert [(ref.key, ref.origin) for ref in named] == [("x/photo-00", "x")]


def test_a_file_name_of_any_bytes_is_read(tmp_path: Path) -> None:
    """What is no UTF-8 is escaped in the key and in the text, and read under its own name."""
    folder = os.fsencode(tmp_path / "in")
    Path(os.fsdecode(folder)).mkdir()
    for name in (b"caf\xe9.png", b"caf\xe8.png"):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(name)
    found = list_images([os.fsdecode(folder)], tmp_path / "kept")

    assert [(ref.key, ref.file, read(ref)) for ref in found.images] == [
        ("caf_xe8", "caf\\xe8.png", b"caf\xe8.png"),
        ("caf_xe9", "caf\\xe9.png", b"caf\xe9.png"),
    ]
    assert found.renamed() == 2


def test_an_input_that_is_no_utf_8_is_refused_with_a_remedy_that_works(
    pictures: Pictures, tmp_path: Path
) -> None:
    """No configuration can hold the path; the folder above it can be given."""
    above = pictures(1)
    odd = os.fsdecode(os.fsencode(above) + b"/caf\xe9")
    Path(odd).mkdir()
    (above / "photo-00.png").rename(Path(odd) / "photo-00.png")

    with pytest.raises(UsageError, match=r"caf\\xe9: a path that is no UTF-8.*folder above it"):
        list_images([odd], tmp_path / "kept")
    assert [ref.key for ref in list_images([str(above)], tmp_path / "kept").images] == [
        "caf_xe9/photo-00"
    ]


@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name))
def test_every_name_gives_a_key_that_every_table_and_reader_takes(name: bytes) -> None:
    """No dot, no control character, no way out of the folder, valid UTF-8."""
    text = os.fsdecode(name + b".jpg")
    key = sample_key(Path(text))

    assert not key.startswith("/")
    assert ".." not in key.split("/")
    assert "." not in key
    assert "\\" not in key
    assert key.isprintable()
    assert key.encode()
    assert shown(text).encode()
