"""`pipelines.restore --whole`: a folder of photographs, from files to tables and page."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

from infra.errors import BudgetExceeded, UsageError
from tests.conftest import picture
from tests.support import astronaut
from tests.support.restore_jobs import pictures, restore
from tests.support.tiny_bundle import write_tiny_bundle
from tests.test_restore_job import rows

FACES: dict[str, Any] = {
    "face": [{"box": [172, 54, 276, 158]}],
    "none": [],
    "two": [{"box": [172, 54, 276, 158]}, {"box": [20, 20, 23, 23], "landmarks": None}],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Restore three photographs, in one of which a person says that there is no face."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny_bundle(folder / "model")
    album = folder / "album"
    album.mkdir()
    pixels = data.astronaut()
    Image.fromarray(pixels).save(album / "face.png")
    see_through = np.dstack([pixels, np.full(pixels.shape[:2], 200, np.uint8)])
    Image.fromarray(see_through).save(album / "two.png")
    picture(0, 90, 60).save(album / "none.png")
    (folder / "faces.json").write_text(json.dumps(FACES))
    with pytest.raises(BudgetExceeded, match="1 of 3"):
        restore(album, folder / "out", folder / "model", **whole(folder), layers=True, samples=2)
    return folder


def whole(folder: Path) -> dict[str, Any]:
    """Return the options."""
    return {"whole": True, "faces_json": str(folder / "faces.json"), "min_face": 20}


def test_a_photograph_changes_where_its_face_is(world: Path) -> None:
    """And keeps its size and all other pixels; further samples and layers lie beside it."""
    before, after = data.astronaut(), np.asarray(Image.open(world / "out" / "face.png"))
    centre, half = astronaut.CENTRE, 0.75 * astronaut.SIDE
    left, top = np.maximum(0, centre - half).astype(int)
    right, bottom = (centre + half).astype(int)
    outside = np.ones(before.shape[:2], bool)
    outside[top:bottom, left:right] = False
    assert after.shape == before.shape
    assert (after[outside] == before[outside]).all()
    assert (after[80:120, 200:240] != before[80:120, 200:240]).mean() > 0.5

    assert {"face.json", "face.sample-1.png", "face.layers/face-1.png"} <= pictures(
        world / "out"
    ).keys()


def test_each_face_has_its_row(world: Path) -> None:
    """Restored, or left alone with the reason; a photograph without one is a failure by name."""
    faces = pq.read_table(world / "out" / "faces.parquet").to_pylist()
    found = {(face["key"], face["number"]): face for face in faces}

    assert {key: face["outcome"] for key, face in found.items()} == {
        ("face", 1): "restored",
        ("two", 1): "left alone",
        ("two", 2): "restored",
    }
    assert found["two", 1]["left_alone"].startswith("too_small: ")
    assert found["face", 1]["native_side"] == pytest.approx(astronaut.SIDE, rel=0.2)
    assert "landmarks" not in found["face", 1]
    assert rows(world / "out")["none"]["reason"] == "no_face"
    assert rows(world / "out")["none"]["detail"].startswith("no face was found; draw its box")
    assert not [name for name in pictures(world / "out") if name.startswith("none.")]


def test_the_page_shows_the_faces(world: Path) -> None:
    """Of transparent photographs too: the whole, and the largest face."""
    page = (world / "out" / "report.html").read_text()

    assert page.count("its largest face, input</figcaption>") == 2
    assert "no_face: no face was found" in page


def test_corrected_faces_are_another_configuration(world: Path) -> None:
    """What counts is what the file says; with --overwrite the pictures are made anew."""
    before = pictures(world / "out")
    options = {**whole(world), "layers": True, "samples": 2}
    copy = world / "copy.json"
    copy.write_text((world / "faces.json").read_text())
    with pytest.raises(BudgetExceeded, match="1 of 3"):
        restore(
            world / "album", world / "out", world / "model", **options | {"faces_json": str(copy)}
        )
    assert pictures(world / "out") == before

    copy.write_text(json.dumps(FACES | {"two": []}))
    with pytest.raises(UsageError, match=r"another configuration.*faces_json"):
        restore(
            world / "album", world / "out", world / "model", **options | {"faces_json": str(copy)}
        )


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"faces": "tallest"}, "--faces tallest: give largest, all, or numbers"),
        ({"faces_json": "nowhere.json"}, r"nowhere\.json: no such file"),
    ],
)
def test_options_that_cannot_be_read_are_refused(
    world: Path, tmp_path: Path, option: dict[str, str], said: str
) -> None:
    """Before anything is written."""
    with pytest.raises(UsageError, match=said):
        restore(world / "album", tmp_path / "out", world / "model", whole=True, **option)

    assert not (tmp_path / "out").exists()


def test_without_the_extra_nothing_begins(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command names what to install before it writes anything."""
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(UsageError, match=r"--whole: .* pip install -e '.\[faces\]'"):
        restore(world / "album", tmp_path / "out", world / "model", whole=True)

    assert not (tmp_path / "out").exists()
