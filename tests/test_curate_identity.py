"""What a curated set is a function of: what was read, however it was named and wherever it lay."""

import os
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from models.metrics.brisque import Brisque
from tests.conftest import Pictures, picture
from tests.support.curation_jobs import InProcess, published, run


def forbid_scoring(patch: pytest.MonkeyPatch) -> None:
    """Let every attempt to score a patch fail."""

    def refuse(*_: object) -> list[float]:
        raise AssertionError("a patch was scored again")

    patch.setattr(Brisque, "score", refuse)


def scored(engine: InProcess) -> list[str]:
    """Return the keys of the images that a run sent to be scored."""
    return [ref["key"] for stage, unit in engine.units if stage == "score" for ref in unit["refs"]]


@pytest.mark.parametrize("spelling", ["{0}/", "raw", "./raw/../raw", "{0}/../raw", "link"])
def test_another_spelling_of_an_input_changes_nothing(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    """A slash at the end, a relative path or a link to the folder: the set is complete already."""
    source = pictures(3)
    (tmp_path / "link").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    run(source, tmp_path / "set")
    before = published(tmp_path / "set")
    again = run(source, tmp_path / "set", input=(spelling.format(source),))
    run(source, tmp_path / "fresh", input=(spelling.format(source),))

    assert again.units == []
    assert published(tmp_path / "set") == published(tmp_path / "fresh") == before


def test_one_more_input_costs_what_is_new(pictures: Pictures, tmp_path: Path) -> None:
    """An archive added to the inputs is scored alone, and the set is the one of a fresh run."""
    source = pictures(3)
    (tmp_path / "extra").mkdir()
    picture(50, 160, 128).save(tmp_path / "extra" / "new.png")
    archive = shutil.make_archive(str(tmp_path / "extra"), "zip", tmp_path / "extra")
    run(source, tmp_path / "set")
    both = (archive, str(source))
    again = run(source, tmp_path / "set", input=both)
    run(source, tmp_path / "fresh", input=both[::-1])

    assert scored(again) == ["new"]
    assert published(tmp_path / "set") == published(tmp_path / "fresh")


def test_files_with_another_time_are_read_and_not_scored(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Identity is the SHA-256: after `touch` or a copy nothing is scored, cut or published anew."""
    source = pictures(3)
    run(source, tmp_path / "set")
    before = published(tmp_path / "set")
    for path in source.rglob("*.png"):
        os.utime(path, ns=(1, 1))
    forbid_scoring(monkeypatch)
    again = run(source, tmp_path / "set")

    assert len(scored(again)) == 3
    assert again.count("pack") == 0
    assert published(tmp_path / "set") == before
    assert run(source, tmp_path / "set").units == []


def test_a_folder_that_was_packed_is_not_scored_again(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images in an archive keep their scores; rows name the archive as their origin."""
    source = pictures(3)
    run(source, tmp_path / "set")
    archive = tmp_path / "raw.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(source, ".")
    forbid_scoring(monkeypatch)
    run(source, tmp_path / "set", input=(str(archive),))
    table = pq.read_table(tmp_path / "set" / "scores.parquet")

    assert set(table["origin"].to_pylist()) == {"raw.tar"}


def test_an_image_of_other_bytes_and_the_same_length_is_scored_anew(
    pictures: Pictures, tmp_path: Path
) -> None:
    """Equal key and length are not enough: the SHA-256 decides."""
    source = pictures(2)
    run(source, tmp_path / "set")
    path = source / "photo-00.png"
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-12] + bytes(12))  # its end mark is lost, its pixels are whole
    run(source, tmp_path / "set")
    run(source, tmp_path / "fresh")

    assert published(tmp_path / "set") == published(tmp_path / "fresh")
