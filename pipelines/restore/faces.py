"""Which faces of a photograph are restored, and whether a picture is an aligned face at all.

Faces are numbered from 1, from left to right, as the JSON beside each output lists them.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from infra.errors import UsageError, UserError
from models.checkpoint import CheckpointError
from models.faces.alignment import Alignment, Pixels, Points
from models.faces.find import Box, Face, FaceFinder
from models.faces.weights import FacesMissingError, load_dlib
from pipelines.restore.config import WholeRule
from pipelines.restore.given_faces import GivenFace

T = TypeVar("T")

MOST_TURN = 20.0  # degrees
LEAST_SCALE, MOST_SCALE = 0.6, 1.7  # the face's square, in the picture's side
MOST_SHIFT = 0.15  # of the square's centre from the picture's, in the picture's side
"""From here on a face is not aligned. Of 720 aligned faces at the full severity of training, the
worst was turned by 7.2 degrees, of 0.83 to 1.39 of the side, and shifted by 0.07."""

APART = 0.5
"""How far a given box may lie from the given landmarks, in the box's side."""


class FaceRefusal(Exception):  # noqa: N818  (the outcome of one picture, which is counted)
    """What one picture's faces cannot give; the others go on.

    Attributes:
        reason: in a word: not_aligned, no_such_face or unfit_faces.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class ChosenFace:
    """A face of a photograph, and what becomes of it."""

    number: int
    """From 1, from left to right."""
    face: Face
    alignment: Alignment
    """Its square, as a crop of the model's size."""
    left_alone: str = ""
    """Why it is not restored; empty if it is."""

    def record(self) -> dict[str, Any]:
        """Return the face's entry in the JSON, from which `--faces-json` makes it again."""
        return {
            "number": self.number,
            "box": list(self.face.box),
            "score": self.face.score,
            "native_side": round(self.alignment.native_side, 1),
            "rotation": round(self.alignment.rotation, 1),
            "left_alone": self.left_alone or None,
            "landmarks": self.face.landmarks.tolist(),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignmentCheck:
    """What was seen of the alignment of a picture that is taken for an aligned face."""

    verdict: str
    """aligned; or not checked, and why."""
    rotation: float | None = None
    """Of the face in the picture, clockwise, in degrees."""
    scale: float | None = None
    """Side of the face's square, in the picture's side."""
    shift: tuple[float, float] | None = None
    """Of its centre from the picture's, (right, down), in the picture's side."""
    landmarks: Points | None = None
    """[68, 2] in the picture, of a face that was seen; not in the JSON."""

    def record(self) -> dict[str, Any]:
        """Return what the JSON says of it."""
        names = ("verdict", "rotation", "scale", "shift")
        return {name: getattr(self, name) for name in names}


def require_dlib() -> None:
    """Refuse to look for faces where the extra `faces` is not installed, before anything begins.

    Raises:
        UsageError: it is not.
    """
    try:
        load_dlib()
    except FacesMissingError as error:
        raise UsageError(f"--whole: {error}") from error


def load_finder() -> FaceFinder:
    """Load the face finder, which the extra `faces` installs.

    Raises:
        UserError: it is not installed, or its weights are damaged.
    """
    from models.faces.dlib_finder import DlibFinder

    try:
        return DlibFinder()
    except CheckpointError as error:
        raise UserError(str(error)) from error


def finder_if_installed() -> FaceFinder | None:
    """Load the face finder; None without the extra `faces`.

    Raises:
        UserError: its weights are damaged.
    """
    from models.faces.dlib_finder import DlibFinder

    return if_installed(DlibFinder)


def if_installed(load: Callable[[], T]) -> T | None:
    """Load something of the extra `faces`; None without that.

    Raises:
        UserError: its weights are damaged.
    """
    try:
        return load()
    except FacesMissingError:
        return None
    except CheckpointError as error:
        raise UserError(str(error)) from error


def check_aligned(pixels: Pixels, finder: FaceFinder | None) -> AlignmentCheck:
    """Check that a picture is a face that is aligned as FFHQ's faces are.

    A picture in which no face is surely seen is let through: heavily degraded faces are not seen,
    or in a wrong place, and they are what restoration is for.

    Args:
        pixels: RGB uint8 [H, W, 3].
        finder: None if the extra `faces` is not installed.

    Raises:
        FaceRefusal: not_aligned: it is not square, or its largest face lies elsewhere.
    """
    height, width = pixels.shape[:2]
    if height != width:
        raise FaceRefusal(
            "not_aligned",
            f"{width} x {height} pixels: not square, so not an aligned face; give --whole for "
            "photographs",
        )
    if finder is None:
        return AlignmentCheck(verdict="not checked: the extra faces is not installed")
    face = finder.find_main(pixels)
    if face is None:
        return AlignmentCheck(verdict="not checked: no face found")
    if not face.is_sure:
        return AlignmentCheck(verdict="not checked: its face is too unclear")
    alignment = face.alignment(height)
    x, y = ((alignment.corners.mean(axis=0) - (height - 1) / 2) / height).tolist()
    if (
        abs(alignment.rotation) > MOST_TURN
        or not LEAST_SCALE <= alignment.scale <= MOST_SCALE
        or max(abs(x), abs(y)) > MOST_SHIFT
    ):
        raise FaceRefusal(
            "not_aligned",
            f"its face is turned by {alignment.rotation:.0f} degrees, its square has "
            f"{alignment.scale:.2f} of the picture's side and lies {x:+.2f} to the right and "
            f"{y:+.2f} down, so it is not aligned as the model's faces are (at most "
            f"{MOST_TURN:.0f} degrees, {LEAST_SCALE} to {MOST_SCALE} of the side, {MOST_SHIFT} "
            "away): give --whole, which aligns it",
        )
    return AlignmentCheck(
        verdict="aligned",
        rotation=round(alignment.rotation, 1),
        scale=round(alignment.scale, 3),
        shift=(round(x, 3), round(y, 3)),
        landmarks=face.landmarks,
    )


def choose_faces(
    pixels: Pixels,
    rule: WholeRule,
    size: int,
    finder: FaceFinder | None,
    given: Sequence[GivenFace] | None = None,
) -> list[ChosenFace]:
    """Find the faces of a photograph, number them, and decide which are restored.

    Args:
        pixels: RGB uint8 [H, W, 3].
        rule: which faces, and how small they may be.
        size: of the model's pictures, in pixels.
        finder: None if the extra `faces` is not installed: then every face has to be given, by its
            landmarks.
        given: the faces of this photograph in `--faces-json`, in the place of a search.

    Returns:
        All faces, in the order of their numbers; those that are left alone say why.

    Raises:
        FaceRefusal: a face that is asked for is not there, or a given one does not fit the
            photograph.
        UserError: the faces have to be found, and the extra `faces` is not installed.
    """
    if given is None:
        found = _needed(finder).find(pixels)
        numbered = list(enumerate(found, start=1))
    else:
        numbered = _numbered([(one.number, _made(one, pixels, finder)) for one in given])
    faces = [ChosenFace(number, face, _aligned(face, number, size)) for number, face in numbered]
    wanted = _wanted(faces, parse_faces(rule.faces), rule.faces)
    return [_decided(face, wanted, rule, size) for face in faces]


def parse_faces(text: str) -> str | frozenset[int]:
    """Read the value of `--faces`: "largest", "all", or the numbers of faces.

    Raises:
        UsageError: it is none of these.
    """
    if text in ("largest", "all"):
        return text
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isascii() and number.isdigit() and int(number) > 0 for number in numbers):
        raise UsageError(
            f"--faces {text}: give largest, all, or numbers of faces from left to right, from 1, "
            "such as 1,3"
        )
    return frozenset(map(int, numbers))


def _made(given: GivenFace, pixels: Pixels, finder: FaceFinder | None) -> Face:
    """Make a face of what was given of it: landmarks count, else they are placed in the box."""
    if given.landmarks is not None:
        landmarks = np.array(given.landmarks, dtype=np.float64)
        (left, top), (right, bottom) = landmarks.min(axis=0), landmarks.max(axis=0)
        spanned = (float(left), float(top), float(right), float(bottom))
        _check_place("the face of the landmarks", spanned, pixels)
        if given.box is not None and _distance(given.box, spanned) > APART:
            raise FaceRefusal(
                "unfit_faces",
                f"the box {list(given.box)} is not around the landmarks, which span "
                f"{[round(edge) for edge in spanned]}: if the box is right, set the landmarks to "
                "null, and they are placed in it",
            )
        return Face(given.box or spanned, None, landmarks)
    assert given.box is not None
    _check_place(f"the box {list(given.box)}", given.box, pixels)
    return Face(given.box, None, _needed(finder).landmarks(pixels, given.box))


def _check_place(what: str, box: Box, pixels: Pixels) -> None:
    """Refuse a face whose middle is not in the photograph, or that is larger than it."""
    height, width = pixels.shape[:2]
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
        raise FaceRefusal(
            "unfit_faces",
            f"the middle of {what}, ({x:.0f}, {y:.0f}), is outside the photograph of {width} x "
            f"{height} pixels",
        )
    if max(box[2] - box[0], box[3] - box[1]) > max(width, height):
        raise FaceRefusal(
            "unfit_faces",
            f"{what}, from ({box[0]:.0f}, {box[1]:.0f}) to ({box[2]:.0f}, {box[3]:.0f}), is larger "
            f"than the photograph of {width} x {height} pixels; give pixels of the photograph",
        )


def _distance(box: Box, other: Box) -> float:
    """Return how far the middles of two boxes are apart, in the first one's longer side."""
    x, y = (box[0] + box[2] - other[0] - other[2]) / 2, (box[1] + box[3] - other[1] - other[3]) / 2
    return float(np.hypot(x, y) / max(box[2] - box[0], box[3] - box[1]))


def _numbered(faces: list[tuple[int | None, Face]]) -> list[tuple[int, Face]]:
    """Keep the numbers that were given; the other faces have the next ones, from left to right."""
    kept = [(number, face) for number, face in faces if number is not None]
    new = [face for number, face in faces if number is None]
    new.sort(key=lambda face: (face.box[0] + face.box[2], face.box[1]))
    first = max((number for number, _ in kept), default=0) + 1
    return sorted([*kept, *enumerate(new, start=first)], key=lambda one: one[0])


def _aligned(face: Face, number: int, size: int) -> Alignment:
    try:
        return face.alignment(size)
    except ValueError as error:
        raise FaceRefusal("unfit_faces", f"face {number}: {error}") from error


def _wanted(
    faces: Sequence[ChosenFace], choice: str | frozenset[int], said: str
) -> Collection[int]:
    """Return the numbers of the faces that are asked for."""
    numbers = [face.number for face in faces]
    if choice == "all" or not faces:
        return numbers
    if isinstance(choice, str):
        return [max(faces, key=lambda face: (face.alignment.native_side, -face.number)).number]
    absent = sorted(choice - set(numbers))
    if absent:
        raise FaceRefusal(
            "no_such_face",
            f"--faces {said}: there is no face {absent[0]}; the photograph has "
            f"{', '.join(map(str, numbers))}, from left to right",
        )
    return choice


def _decided(face: ChosenFace, wanted: Collection[int], rule: WholeRule, size: int) -> ChosenFace:
    """Say why a face is left alone, if it is."""
    least, side = rule.smallest(size), face.alignment.native_side
    if side < least:
        said = f"too_small: {side:.0f} pixels, --min-face {least}"
    elif face.number not in wanted:
        said = f"not_chosen: --faces {rule.faces}"
    else:
        return face
    return ChosenFace(face.number, face.face, face.alignment, said)


def _needed(finder: FaceFinder | None) -> FaceFinder:
    return load_finder() if finder is None else finder
