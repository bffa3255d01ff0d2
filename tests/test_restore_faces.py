"""Which faces are restored: by number, by size, by a person's JSON; and what is no aligned face."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.degradation.parameters import degradation_preset
from datasets.degradation.reference import degrade, draw_parameters
from infra.errors import UsageError, UserError
from models.faces.alignment import Pixels
from models.faces.dlib_finder import DlibFinder
from pipelines.restore.config import WholeRule
from pipelines.restore.faces import (
    FaceRefusal,
    check_aligned,
    choose_faces,
    finder_if_installed,
    parse_faces,
)
from pipelines.restore.given_faces import GivenFace, read_faces_json
from tests.support import astronaut

PHOTOGRAPH = np.zeros((200, 400, 3), np.uint8)


@pytest.fixture(scope="module")
def finder() -> DlibFinder:
    """Share the finder, whose weights take a second to load."""
    return astronaut.finder()


def _landmarks(side: float, x: float, y: float) -> list[list[float]]:
    """Draw the landmarks of an upright face whose square has ``side`` pixels around (x, y)."""
    points = np.full((68, 2), (0.5, 0.5))
    points[36:42], points[42:48] = (0.375, 0.47), (0.625, 0.47)
    points[[48, 54]] = (0.42, 0.72), (0.58, 0.72)
    points[8], points[19], points[24] = (0.5, 0.88), (0.35, 0.4), (0.65, 0.4)
    return (points * side + (x - side / 2, y - side / 2)).tolist()


def _given(side: float, x: float, y: float, number: int | None = None) -> GivenFace:
    landmarks = tuple((x, y) for x, y in _landmarks(side, x, y))
    return GivenFace(number, None, landmarks)


def _left_alone(faces: str, min_face: int | None, given: list[GivenFace]) -> dict[int, str]:
    """Return why each face is left alone, by its number; the model has 512 pixels."""
    rule = WholeRule(whole=True, faces=faces, min_face=min_face)
    chosen = choose_faces(PHOTOGRAPH, rule, 512, None, given)
    return {face.number: face.left_alone for face in chosen}


THREE = [_given(100, 300, 100), _given(80, 100, 100), _given(41, 200, 100)]


@pytest.mark.parametrize(
    ("faces", "min_face", "expected"),
    [
        ("all", 1, {1: "", 2: "", 3: ""}),
        ("all", None, {1: "", 2: "too_small: 41 pixels, --min-face 64", 3: ""}),
        ("all", 90, dict.fromkeys((1, 2), "too_small") | {3: ""}),
        ("largest", 1, dict.fromkeys((1, 2), "not_chosen: --faces largest") | {3: ""}),
        ("1,3", 1, {1: "", 2: "not_chosen: --faces 1,3", 3: ""}),
        ("2", None, {1: "not_chosen", 2: "too_small: 41 pixels, --min-face 64", 3: "not_chosen"}),
    ],
)
def test_faces_are_chosen(faces: str, min_face: int | None, expected: dict[int, str]) -> None:
    """By number from left to right, by size; every other face says why it is left alone."""
    left_alone = _left_alone(faces, min_face, THREE)

    assert left_alone.keys() == expected.keys()
    for number, said in expected.items():
        assert left_alone[number].startswith(said)
        assert bool(left_alone[number]) == bool(said)


def test_an_absent_face_is_refused() -> None:
    """The number that is not there is named, with those that are."""
    with pytest.raises(FaceRefusal, match="no face 4; the photograph has 1, 2, 3") as refused:
        _left_alone("1,4", None, THREE)

    assert refused.value.reason == "no_such_face"


def test_no_face_is_no_error() -> None:
    """A photograph in which a person sees no face has none."""
    assert _left_alone("1,3", None, []) == {}


@pytest.mark.parametrize("text", ["", "0", "1,", "largest,1", "-1", "1.5", "biggest", "²"])
def test_other_choices_are_refused(text: str) -> None:
    """What is no choice is named, with what is."""
    with pytest.raises(UsageError, match="give largest, all, or numbers of faces"):
        parse_faces(text)


def test_given_numbers_stay() -> None:
    """A face keeps its number when another is deleted; new faces have the next ones."""
    given = [_given(80, 300, 100), _given(80, 200, 100, 3), _given(80, 100, 100)]

    chosen = choose_faces(PHOTOGRAPH, WholeRule(), 512, None, given)

    middles = {face.number: round(face.alignment.corners.mean(axis=0)[0]) for face in chosen}
    assert middles == {3: 200, 4: 100, 5: 300}


def test_what_was_written_is_read_again(finder: DlibFinder, tmp_path: Path) -> None:
    """The JSON beside an output, given back as it is, gives the same faces to the bit."""
    picture, rule = astronaut.portrait(80), WholeRule(min_face=1)
    found = choose_faces(picture, rule, 128, finder)
    written = {"key": "astronaut", "settings": {}, "faces": [face.record() for face in found]}
    path = tmp_path / "astronaut.json"
    path.write_text(json.dumps(written))

    given = read_faces_json(str(path), ["astronaut", "other"])["astronaut"]
    again = choose_faces(picture, rule, 128, None, given)

    assert len(found) == 1
    for one, other in zip(found, again, strict=True):
        assert one.number == other.number
        assert one.face.box == other.face.box
        assert np.array_equal(one.alignment.matrix, other.alignment.matrix)


def test_landmarks_are_placed_in_a_given_box(finder: DlibFinder, tmp_path: Path) -> None:
    """A box drawn by hand is enough; its face has the square that the finder would give it."""
    picture, rule = astronaut.portrait(128), WholeRule(min_face=1)
    x, y = astronaut.view(128).to_crop(astronaut.CENTRE[None])[0].tolist()
    path = tmp_path / "faces.json"
    path.write_text(json.dumps({"album/1": [{"box": [x - 24, y - 22, x + 22, y + 24]}]}))
    given = read_faces_json(str(path), ["album/1"])["album/1"]

    (face,) = choose_faces(picture, rule, 128, finder, given)

    assert abs(face.alignment.native_side - 0.6 * 128) < 8
    assert np.abs(face.alignment.corners.mean(axis=0) - (x, y)).max() < 4


LANDMARKS = _landmarks(80, 100, 100)


@pytest.mark.parametrize(
    ("faces", "said"),
    [
        ({"other": []}, "'other' is no key of a photograph of the input"),
        ({"a": {}}, r"a: holds no list of faces; give \[\] where there is none"),
        ({"key": "a"}, "a: holds no list of faces"),
        ({"a": [{}]}, "face 1: give an object with a box"),
        ({"a": [[1, 2, 3, 4]]}, "face 1: give an object with a box"),
        ({"a": [{"boxes": [0, 0, 9, 9]}]}, "face 1: give an object with a box"),
        ({"a": [{"box": [0, 0, 9]}]}, r"box \[0, 0, 9\]; give \[left, top, right, bottom\]"),
        ({"a": [{"box": [9, 0, 9, 9]}]}, r"box \[9, 0, 9, 9\]; give"),
        ({"a": [{"box": ["0", 0, 9, 9]}]}, "give .left, top"),
        ({"a": [{"landmarks": LANDMARKS[:5]}]}, "landmarks are 68 points"),
        ({"a": [{"landmarks": [[1]] * 68}]}, "landmarks are 68 points"),
        ({"a": [{"number": 0, "landmarks": LANDMARKS}]}, "number 0; give a whole number from 1"),
        ({"a": [{"number": 2, "landmarks": LANDMARKS}] * 2}, "two faces have the number 2"),
    ],
)
def test_bad_faces_json(faces: Any, said: str, tmp_path: Path) -> None:
    """A fault of the file is named before anything is restored, with what is allowed."""
    path = tmp_path / "faces.json"
    path.write_text(json.dumps(faces))

    with pytest.raises(UsageError, match=said):
        read_faces_json(str(path), ["a"])


def test_no_faces_json_is_no_faces(tmp_path: Path) -> None:
    """Without a file every photograph is searched; a file absent or broken is said."""
    broken = tmp_path / "broken.json"
    broken.write_text("{")

    assert read_faces_json("", ["a"]) == {}
    with pytest.raises(UsageError, match="not a JSON file"):
        read_faces_json(str(broken), ["a"])
    with pytest.raises(UsageError, match=r"absent\.json"):
        read_faces_json(str(tmp_path / "absent.json"), ["a"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (GivenFace(None, (500, 0, 600, 90), None), r"\(550, 45\), is outside .* 400 x 200 pixels"),
        (_given(80, 100, 900), r"the middle of the face of the landmarks, .* is outside"),
        (_given(1200, 200, -68), "is larger than the photograph of 400 x 200 pixels"),
        (GivenFace(None, (-1e9, -1e9, 1e9, 1e9), None), "is larger than the photograph"),
        (GivenFace(None, None, ((100.0, 100.0),) * 68), "span no face"),
        (
            GivenFace(1, (300, 100, 360, 160), tuple((x, y) for x, y in LANDMARKS)),
            "set the landmarks to null",
        ),
    ],
)
def test_given_faces_that_do_not_fit(given: GivenFace, said: str) -> None:
    """A face outside its photograph, or of two places, is refused for that photograph."""
    with pytest.raises(FaceRefusal, match=said) as refused:
        choose_faces(PHOTOGRAPH, WholeRule(), 512, None, [given])

    assert refused.value.reason == "unfit_faces"


def test_null_landmarks_are_placed(finder: DlibFinder, tmp_path: Path) -> None:
    """The remedy of a moved box: with its landmarks set to null, they are placed in it."""
    path = tmp_path / "faces.json"
    path.write_text(json.dumps({"a": [{"number": 2, "box": [20, 20, 60, 60], "landmarks": None}]}))

    given = read_faces_json(str(path), ["a"])["a"]
    (face,) = choose_faces(astronaut.portrait(80), WholeRule(min_face=1), 64, finder, given)

    assert face.number == 2
    assert 30 < face.alignment.native_side < 70


def _aligned(size: int) -> Pixels:
    """Cut the astronaut out as FFHQ's faces are."""
    return astronaut.portrait(size, share=1.0)


@pytest.mark.parametrize("draw", range(5))
def test_degraded_aligned_faces_are_let_through(finder: DlibFinder, draw: int) -> None:
    """At the full severity of training no aligned face is refused."""
    parameters = draw_parameters(degradation_preset("pmrf-128"), seed=0, key="a", draw=draw)

    lq = np.rint(degrade(_aligned(128), parameters).lq * 255).astype(np.uint8)

    check = check_aligned(lq, finder)

    unchecked = ("not checked: no face found", "not checked: its face is too unclear")
    assert check.verdict in ("aligned", *unchecked)


def test_an_unclear_face_refuses_nothing(finder: DlibFinder) -> None:
    """A face that only the network saw may be misplaced: its picture is let through."""
    config, verdicts = degradation_preset("pmrf-128"), set()
    for draw in (0, 4, 7):
        parameters = draw_parameters(config, seed=0, key="astronaut", draw=draw)
        lq = np.rint(degrade(_aligned(128), parameters).lq * 255).astype(np.uint8)
        verdicts.add(check_aligned(lq, finder).verdict)

    assert "not checked: its face is too unclear" in verdicts


def test_an_aligned_face_is_seen(finder: DlibFinder) -> None:
    """The check measures what it saw, and says so."""
    check = check_aligned(_aligned(160), finder)

    assert check.verdict == "aligned"
    assert check.rotation is not None
    assert abs(check.rotation) < 6
    assert check.scale is not None
    assert abs(check.scale - 1) < 0.1
    assert check.shift is not None
    assert np.abs(check.shift).max() < 0.05


@pytest.mark.parametrize("wrong", ["small", "large", "turned", "aside", "wide"])
def test_unaligned_pictures_are_refused(finder: DlibFinder, wrong: str) -> None:
    """A photograph, a crop too close, a turned or a shifted face: refused, naming --whole."""
    pictures = {
        "small": astronaut.portrait(300, share=0.4),
        "large": astronaut.portrait(160, share=1.8),
        "turned": np.rot90(_aligned(160)).copy(),
        "aside": np.roll(astronaut.portrait(256, share=0.8), 80, axis=1),
        "wide": np.ascontiguousarray(_aligned(160)[:100]),
    }

    with pytest.raises(FaceRefusal, match="give --whole") as refused:
        check_aligned(pictures[wrong], finder)

    assert refused.value.reason == "not_aligned"


def test_what_cannot_be_checked_is_let_through(
    finder: DlibFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture in which no face is seen, or without the extra, is restored, and that is said."""
    gray = np.full((128, 128, 3), 127, np.uint8)

    assert check_aligned(gray, finder).verdict == "not checked: no face found"
    monkeypatch.setitem(sys.modules, "dlib", None)
    absent = finder_if_installed()
    assert absent is None
    verdict = check_aligned(gray, absent).verdict
    assert verdict == "not checked: the extra faces is not installed"
    with pytest.raises(UserError, match=r"pip install -e '\.\[faces\]'"):
        choose_faces(gray, WholeRule(), 512, absent)
