"""What is said of a restored face: the numbers, the warning, the spread of its samples."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from datasets.decoding import Pixels, decode
from models.consistency import THRESHOLD
from models.spread import picture, spread
from pipelines.restore.belief import numbers, warnings
from pipelines.restore.config import RestoreRule
from pipelines.restore.networks import FaceRestorer, RestoredFace
from tests.support.restore_jobs import restore
from tests.support.tiny_bundle import SIDE, write_faces, write_tiny_bundle

SAMPLES = 3
EQUAL = "all samples of it are equal: nothing random enters"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model and two faces, and restore each three times."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny_bundle(folder / "model")
    write_faces(folder / "lq", 2)
    restore(folder / "lq", folder / "out", folder / "model", samples=SAMPLES)
    return folder


def png(path: Path) -> Pixels:
    """Decode a picture."""
    return decode(path.read_bytes())


def restored(world: Path, **rule: Any) -> RestoredFace:
    """Restore a face in memory."""
    restorer = FaceRestorer(RestoreRule(model=str(world / "model"), device="cpu", **rule))
    (face,) = restorer([png(world / "lq" / "face-0.png")], ["face-0"])
    return face


def test_the_first_of_several_samples_is_the_single_restoration(world: Path) -> None:
    """To the bit; the others differ from it and from each other, and one has no spread."""
    alone, several = restored(world), restored(world, samples=SAMPLES)

    assert (alone.restored == several.restored).all()
    assert (alone.samples, alone.spread) == ((), None)
    assert len({face.tobytes() for face in (several.restored, *several.samples)}) == SAMPLES


def test_the_names_of_the_noise_are_the_keys_of_the_samples(world: Path) -> None:
    """Sample k of a face is what the face restores to under the name KEY#k."""
    restorer = FaceRestorer(RestoreRule(model=str(world / "model"), device="cpu"))
    (face,) = restorer([png(world / "lq" / "face-0.png")], ["face-0#2"])

    assert (face.restored == restored(world, samples=SAMPLES).samples[1]).all()


def test_samples_and_their_spread_lie_beside_the_picture(world: Path) -> None:
    """The map is that of the files, and its mean stands in the JSON and in the table."""
    out = world / "out"
    samples = [png(out / f"face-0{name}.png") for name in ("", ".sample-1", ".sample-2")]
    said = json.loads((out / "face-0.json").read_text())["faces"][0]

    assert (png(out / "face-0.spread.png") == picture(spread(samples))).all()
    assert said["spread"] == pytest.approx(spread(samples).mean(), abs=1e-3)
    assert pq.read_table(out / "faces.parquet").column("spread").to_pylist()[0] == said["spread"]
    assert "spread of the samples, in levels: black 0" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    "rule", [{"sigma_s": 0.0}, {"strength": 0.0}, {"method": "posterior-mean"}], ids=str
)
def test_samples_without_noise_are_equal_and_it_is_said(world: Path, rule: dict[str, Any]) -> None:
    """Their spread is exactly zero."""
    face = restored(world, samples=2, **rule)
    said = numbers(face, face.restored)

    assert (face.restored == face.samples[0]).all()
    assert said["spread"] == 0
    assert [sentence for sentence in warnings(said, "it") if EQUAL in sentence]


def test_a_face_that_contradicts_its_input_is_told_in_numbers_and_in_a_sentence(
    world: Path,
) -> None:
    """A network without training restores one: the note is in JSON, table and page."""
    out = world / "out"
    said = json.loads((out / "face-0.json").read_text())
    face = said["faces"][0]
    rows = pq.read_table(out / "results.parquet").to_pylist()

    assert face["disagreement"] > THRESHOLD
    assert face["doubtful"]
    assert said["notes"] == rows[0]["notes"]
    assert f"differ by {face['disagreement']:g} levels" in said["notes"][-1]
    assert "do not believe it unseen" in (out / "report.html").read_text()


def test_a_face_that_agrees_has_no_warning() -> None:
    """LQ, restored by a better cubic enlargement of what it knows."""
    true = np.asarray(np.random.default_rng(0).integers(60, 200, (8, 8, 3)), np.uint8)
    ways = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)
    lq, face = (np.asarray(cv2.resize(true, (SIDE, SIDE), interpolation=way)) for way in ways)
    said = numbers(RestoredFace(face, None), lq)

    assert not said["doubtful"]
    assert list(warnings(said, "it")) == []
    assert said.keys() == {"scale", "disagreement", "doubtful"}
