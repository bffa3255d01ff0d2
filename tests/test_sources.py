"""Inputs become the same keys and bytes, whatever holds them."""

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from datasets.names import sample_key
from datasets.sources import Listing, list_images, read
from datasets.unusable import UnreadableImage
from infra.errors import UsageError
from tests.conftest import Pictures


def contents(listing: Listing) -> dict[str, bytes]:
    """Return every image's bytes by key."""
    return {ref.key: read(ref) for ref in listing.images}


def tar(folder: Path, target: Path, mode: str) -> Path:
    """Pack a folder's files, in an order that is not the keys'."""
    with tarfile.open(target, mode) as archive:  # type: ignore[call-overload]  # mode is a str
        for path in sorted(folder.rglob("*.png"), reverse=True):
            archive.add(path, path.relative_to(folder))
    return target


def packed(folder: Path, target: Path) -> Path:
    """Pack a folder's files into a zip."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, path.relative_to(folder))
    return target


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("set.tar", lambda folder, target: tar(folder, target, "w")),
        ("set.tar.gz", lambda folder, target: tar(folder, target, "w:gz")),
        ("set.zip", packed),
    ],
)
def test_archives_are_read_in_place_as_the_folder_is(
    pictures: Pictures, tmp_path: Path, name: str, pack: Callable[[Path, Path], Path]
) -> None:
    """A tar, a tar.gz, a zip and the folder they were made of give the same keys and bytes."""
    folder = pictures(7)
    archive = pack(folder, tmp_path / name)

    found = list_images([str(archive)], tmp_path / "cache")

    assert contents(list_images([str(folder)], tmp_path)) == contents(found)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) in (
        ["cache", "raw"],
        ["raw"],
    )


def test_the_seek_index_is_built_once(pictures: Pictures, tmp_path: Path) -> None:
    """A second listing reads what the first kept; a changed archive gets another of both."""
    folder = pictures(4)
    archive = tar(folder, tmp_path / "set.tgz", "w:gz")
    list_images([str(archive)], tmp_path / "cache")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert sorted(path.suffix for path in kept) == [".gzidx", ".parquet"]
    list_images([str(archive)], tmp_path / "cache")

    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == kept

    (folder / "zz.png").write_bytes((folder / "photo-00.png").read_bytes())
    tar(folder, archive, "w:gz")
    found = list_images([str(archive)], tmp_path / "cache")

    assert len(list((tmp_path / "cache").iterdir())) == 4
    assert contents(found)["zz"] == (folder / "photo-00.png").read_bytes()


def test_keys_are_sorted_over_all_inputs(pictures: Pictures, tmp_path: Path) -> None:
    """Order comes from the keys, not from the order of the inputs or of the file system."""
    a, b = pictures(4, name="a"), pictures(3, name="b")
    one = list_images([str(a), f"also={b}"], tmp_path)
    other = list_images([f"also={b}", str(a)], tmp_path)

    keys = [ref.key for ref in one.images]
    assert keys == sorted(keys) == [ref.key for ref in other.images]
    assert sum(key.startswith("also/") for key in keys) == 3


def test_one_key_in_two_inputs_is_refused_with_the_remedy(
    pictures: Pictures, tmp_path: Path
) -> None:
    """Both files and NAME=PATH stand in the message."""
    a, b = pictures(2, name="a"), pictures(2, name="b")

    with pytest.raises(UsageError, match=r"2 keys occur twice.*photo-00.*other=PATH"):
        list_images([str(a), str(b)], tmp_path)


def test_one_stem_with_two_extensions_is_refused(pictures: Pictures, tmp_path: Path) -> None:
    """a.png and a.jpg would be one sample to every reader."""
    folder = pictures(1)
    (folder / "photo-00.jpg").write_bytes(b"x")

    with pytest.raises(UsageError, match="occur twice"):
        list_images([str(folder)], tmp_path)


def test_other_files_are_counted_and_hidden_ones_passed_over(
    pictures: Pictures, tmp_path: Path
) -> None:
    """Notes and checksums lie beside images; macOS leaves ._ twins in archives."""
    folder = pictures(2)
    (folder / "notes.txt").write_text("hello")
    (folder / "._photo-00.png").write_text("resource fork")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "thumb.png").write_text("x")
    found = list_images([str(folder)], tmp_path)

    assert len(found.images) == 2
    assert found.ignored_kinds() == {"hidden": 2, "other_file": 1}


def test_a_loop_of_links_ends(pictures: Pictures, tmp_path: Path) -> None:
    """Linked folders are followed, each once."""
    folder = pictures(2)
    (folder / "self").symlink_to(folder, target_is_directory=True)

    assert len(list_images([str(folder)], tmp_path).images) == 2


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "holds no image"),
        (lambda path: path.with_suffix(".rar").write_text("x"), "no such file"),
    ],
)
def test_an_input_without_images_is_refused(
    tmp_path: Path, make: Callable[[Path], None], named: str
) -> None:
    """Missing and empty inputs say so, with their name."""
    make(tmp_path / "input")

    with pytest.raises(UsageError, match=named):
        list_images([str(tmp_path / "input")], tmp_path / "cache")


@pytest.mark.parametrize("name", ["broken.tar", "broken.tar.gz", "broken.zip", "odd.7z"])
def test_an_archive_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    """A damaged or unknown archive is the user's to mend, not a traceback."""
    (tmp_path / name).write_bytes(b"\x1f\x8bnot really an archive at all" * 40)

    with pytest.raises(UsageError, match=r"broken archive|neither a folder"):
        list_images([str(tmp_path / name)], tmp_path / "cache")


@pytest.mark.parametrize("name", ["gs://bucket/prefix", "x=https://host/photo.jpg"])
def test_an_input_of_another_kind_of_storage_is_refused(tmp_path: Path, name: str) -> None:
    """It is not taken for a folder of that name."""
    with pytest.raises(UsageError, match="give a local path, or s3://bucket/prefix"):
        list_images([name], tmp_path)


def test_keys_hold_no_dot_and_no_control_character() -> None:
    """A reader ends a key at its first dot."""
    assert sample_key(Path("a.b/photo.v2\n.final.PNG")) == "a_b/photo_v2__final"
    assert sample_key(Path("x.jpg"), "ffhq") == "ffhq/x"


def test_a_file_that_shrank_since_it_was_listed_is_an_error(
    pictures: Pictures, tmp_path: Path
) -> None:
    """Bytes are never silently short."""
    folder = pictures(1)
    (ref,) = list_images([str(folder)], tmp_path).images
    Path(ref.path).write_bytes(b"short")

    with pytest.raises(UnreadableImage, match=r"changed.*5 bytes"):
        read(ref)
