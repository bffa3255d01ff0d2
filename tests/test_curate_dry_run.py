"""A dry run of a curation on a cluster, whose workers see the inputs and not the driver's disk."""

import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datasets.sources import ImageRef
from infra.errors import UserError
from pipelines.curate.estimate import estimate
from pipelines.curate.probe import ProbeImages, unit_of
from tests.conftest import picture
from tests.support.curation_jobs import InProcess, config

Pictures = Callable[[int], Path]


class Elsewhere(InProcess):
    """Workers on another machine, on which a folder of the driver's is not there.

    Args:
        hidden: the folder.
    """

    def __init__(self, hidden: Path) -> None:
        super().__init__()
        self.hidden = hidden

    def run(self, *arguments: Any) -> Iterator[dict[str, Any]]:
        """Do every unit while the folder has another name."""
        away = self.hidden.rename(self.hidden.with_name("away"))
        try:
            results = [*super().run(*arguments)]
        finally:
            away.rename(self.hidden)
        yield from results


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder for temporary files of this machine."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def counts(said: str) -> list[tuple[str, str]]:
    """Read what a dry run counts, but not what it times."""
    return re.findall(r"^  (patches|kept|shards) +about (.*)$", said, re.MULTILINE)


@pytest.mark.parametrize("extension", ["tar", "tar.gz", "tar.xz"])
def test_of_an_archive_it_counts_the_same(
    pictures: Pictures,
    temporary: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extension: str,
) -> None:
    """Seek indexes and copies are on the driver's disk; nothing says that they will be kept."""
    source = pictures(3)
    all_kept: dict[str, Any] = {"scorer": "none", "threshold": None}
    expected = counts(estimate(config(source, tmp_path / "set", **all_kept), InProcess()))
    archive = tmp_path / f"photos.{extension}"
    with tarfile.open(archive, f"w:{extension[4:]}") as tar:
        for path in sorted(source.iterdir()):
            tar.add(path, path.name)
    job = config(archive, tmp_path / "set", **all_kept)

    assert counts(estimate(job, Elsewhere(temporary))) == expected
    assert int(expected[0][1]) > 0
    assert "kept" not in capsys.readouterr().err
    assert not [*temporary.iterdir()]


def test_inputs_that_no_worker_sees_are_an_error(pictures: Pictures, tmp_path: Path) -> None:
    """The first of them is named, and what a cluster needs."""
    source = pictures(2)
    with pytest.raises(UserError, match=r"none of 2 probed images") as caught:
        estimate(config(source, tmp_path / "set"), Elsewhere(source))

    said = str(caught.value)
    assert f"(2 vanished); the first is photo-00.png of raw, read from {source}/photo" in said
    assert "every machine must see the inputs at the same paths" in said


def test_files_that_are_all_broken_are_an_error(temporary: Path, tmp_path: Path) -> None:
    """In a folder, and in an archive that is damaged where its images are."""
    source = tmp_path / "raw"
    source.mkdir()
    for name in ("a", "b"):
        (source / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"\(2 not_an_image\); the first is a\.png of raw.*look at"):
        estimate(config(source, tmp_path / "set"), InProcess())

    archive = tmp_path / "photos.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, "photos")
    with pytest.raises(UserError, match=r"the first is photos/a\.png of photos\.tgz, not_an_im"):
        estimate(config(archive, tmp_path / "set"), Elsewhere(temporary))


def test_what_cannot_be_read_here_is_counted_by_the_worker(temporary: Path) -> None:
    """An image that is read on the driver's machine, where its archive's copy is gone."""
    fields: dict[str, Any] = {
        "key": "a",
        "origin": "photos",
        "file": "a.png",
        "size": 9,
        "stamp": 0,
    }
    unit = unit_of(ImageRef(**fields, path=str(temporary / "copy.tar"), offset=512), temporary)
    job = config(temporary, "set", scorer="none", threshold=None)
    found = ProbeImages(job, None, higher_is_better=True)(unit)

    assert found["unusable"] == [{"reason": "vanished", "image": "a.png of photos"}]
    assert found["counts"]["images"] == 1


def test_it_counts_what_gives_no_sample(pictures: Pictures, tmp_path: Path) -> None:
    """Images by reason, beside those that are cut; and the patches that are not kept."""
    source = pictures(1)
    (source / "broken.png").write_bytes(b"no image")
    picture(9, 20, 20).save(source / "small.png")
    said = estimate(config(source, tmp_path / "set", threshold=-1000.0), InProcess())
    patches = dict(counts(said))["patches"]

    assert "probed 3 of them (1 not_an_image, 1 too_small), scaled" in said
    assert f"about 0 with brisque at -1000.0; dropped about {patches} low_quality\n" in said

    (source / "photo-00.png").unlink()
    assert "  patches   about 0\n" in estimate(config(source, tmp_path / "set"), InProcess())
