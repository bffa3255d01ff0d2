"""Faces found by dlib: histograms of gradients propose, a network decides where they are unsure.

The detector of histograms (Dalal and Triggs 2005, King 2015) is quick and sees faces that stand
upright within 30 degrees; copies turned by 45 degrees, eight in all, see every tilt. What it is
sure of is a face. On strongly degraded faces it is unsure, and there the network (King 2015,
max-margin) is asked, on one crop of 160 pixels each, because it needs 100 times the time.
Regression trees (Kazemi and Sullivan 2014) place the landmarks, first in the proposed box, then
again in FFHQ's own square, which makes them independent of the coarse sizes of boxes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import cos, hypot, radians, sin, sqrt
from threading import Lock

import cv2
import numpy as np
import numpy.typing as npt

from models.faces.alignment import Pixels, Points, crop, ffhq_alignment, square_alignment
from models.faces.find import Box, Face, box_around
from models.faces.weights import DETECTOR, LANDMARKS, SHA256, load_dlib, weights_file

UPRIGHT_PIXELS = 16_000_000
"""Of the copy that is searched for upright faces, at most; it is at most `ENLARGE` times larger."""
TILTED_PIXELS = 2_000_000
"""Of each copy that is searched for tilted faces, before it is turned."""
ENLARGE = 4.0
MAIN_PIXELS, MAIN_SIDE = 1_000_000, 384
"""The same, where one face is expected to fill much of the picture, which is enlarged to a longer
side of `MAIN_SIDE` at most."""
TURNS = tuple(range(0, 360, 45))
QUARTERS = (0, 90, 180, 270)

CERTAIN, CERTAIN_TILTED = 0.25, 0.5
"""From these scores on, an upright or a tilted proposal is a face. In 31 photographs without faces
none has 0.25 in any copy; but a blurred face had 0.26 upside down."""
POSSIBLE = -0.5
"""Below this score, a proposal is dropped; between the two, the network decides."""
FAINT = -1.0
"""Below this score, a proposal is dropped where a person says that there is a face."""
NETWORK_SIDE = 160
"""Of the crop that the network sees, in pixels."""
NETWORK_NEAR = 0.15
"""How far from the aligned face the network may see it, in the crop's side."""
BOX_NEAR = 0.25
"""How far a face may be from the box that a person gave, in the box's side."""

PREDICTOR_SIDE = 256
"""Of the crop in which landmarks are placed, in pixels."""
FINER = 4
"""So many times larger is the crop in which dlib's landmarks are rounded to whole pixels."""
PROPOSED_SHARE = 0.55
"""The proposed box in its crop, in the crop's side."""
ALIGNED_BOX = (0.5, 0.58, 0.61)
"""Centre and side of the box that dlib proposes in an FFHQ-aligned face, in the face's side."""
REFINEMENTS = 1
OVERLAP = 0.35
"""From this share of the union of two squares on, they are one face."""


@dataclass(frozen=True, eq=False)
class _Proposal:
    """A square in which there may be a face, in the photograph."""

    score: float
    centre: Points
    side: float
    turn: float
    """How far the face is turned clockwise, in degrees."""


class DlibFinder:
    """Finds faces with dlib; see `models.faces.find.FaceFinder`.

    It can be used from several threads, which wait for each other: dlib's objects keep notes while
    they work, and dlib releases Python's lock.

    Raises:
        FacesMissingError: the extra `faces` is not installed.
        CheckpointError: a file of weights is damaged.
    """

    def __init__(self) -> None:
        self._dlib = load_dlib()
        self._histograms = self._dlib.get_frontal_face_detector()
        self._network = self._dlib.cnn_face_detection_model_v1(str(weights_file(DETECTOR)))
        self._predictor = self._dlib.shape_predictor(str(weights_file(LANDMARKS)))
        self._lock = Lock()

    @property
    def identity(self) -> str:
        """A digest of dlib's version, the weights and the settings of this file."""
        settings = {name: value for name, value in globals().items() if name.isupper()}
        said = [self._dlib.__version__, SHA256[DETECTOR], SHA256[LANDMARKS], settings]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def find(self, image: Pixels) -> list[Face]:
        """Find the faces of a photograph, from left to right.

        Of p pixels, an upright face is found from a box of 18 pixels on if p is below 1 million,
        of 73 sqrt(p / 16 million) if it is more; a tilted one from 18 pixels on below 0.125
        million, of 73 sqrt(p / 2 million) if it is more. So time and memory, beside the
        photograph's, are bounded.

        Args:
            image: RGB uint8 [H, W, 3].
        """
        with self._lock:
            proposals = self._propose(image, UPRIGHT_PIXELS, TURNS[:1])
            proposals += self._propose(image, TILTED_PIXELS, TURNS[1:])
            faces = self._decide(image, proposals)
        return sorted(faces, key=lambda face: (face.box[0] + face.box[2], face.box[1]))

    def find_main(self, image: Pixels) -> Face | None:
        """Find the largest face of a picture: an upright one, or else one turned by 90 or 180.

        It is found if its box has 73 pixels after a reduction of the picture to a megapixel, or
        after the enlargement of its longer side to 384 pixels.

        Args:
            image: RGB uint8 [H, W, 3].
        """
        enlarge = min(ENLARGE, max(1.0, MAIN_SIDE / max(image.shape[:2])))
        with self._lock:
            for turns in (QUARTERS[:1], QUARTERS[1:]):
                faces = self._decide(image, self._propose(image, MAIN_PIXELS, turns, enlarge))
                if faces:
                    return max(faces, key=lambda f: (f.is_sure, f.alignment(1).native_side))
        return None

    def landmarks(self, image: Pixels, box: Box) -> Points:
        """Place 68 landmarks, [68, 2], on the face in ``box``; its tilt is looked for.

        Where the histograms see no face near the box, it is taken for an upright one.

        Args:
            image: RGB uint8 [H, W, 3].
            box: around brows, chin and cheeks.
        """
        centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
        given = _Proposal(-2.0, centre, (box[2] - box[0] + box[3] - box[1]) / 2, 0.0)
        with self._lock:
            seen = (one for turn in TURNS for one in self._near(image, given, turn))
            return self._place(image, max(seen, key=lambda one: one.score, default=given))

    def _near(self, image: Pixels, given: _Proposal, turn: int) -> Iterator[_Proposal]:
        """Propose faces that are turned so and have about the given place and size."""
        square = square_alignment(given.centre, given.side * _direction(turn), PREDICTOR_SIDE)
        boxes, scores, _ = self._histograms.run(crop(image, square), 0, FAINT)
        for box, score in zip(boxes, scores, strict=True):
            middle = np.array([[box.left() + box.right(), box.top() + box.bottom()]]) / 2
            centre, side = square.to_photograph(middle)[0], box.width() * square.scale
            away = hypot(*(centre - given.centre)) / given.side
            if away < BOX_NEAR and 0.5 < side / given.side < 2:
                yield _Proposal(score, centre, side, turn)

    def _propose(
        self, image: Pixels, pixels: int, turns: Sequence[int], enlarge: float = ENLARGE
    ) -> list[_Proposal]:
        """Search copies of ``image`` of at most so many pixels, turned back by ``turns``."""
        small = _resized(image, pixels, enlarge)
        times = np.array(image.shape[1::-1]) / small.shape[1::-1]
        proposals = []
        for turn in turns:
            matrix, turned = _turned(small, turn)
            boxes, scores, _ = self._histograms.run(turned, 0, POSSIBLE)
            for box, score in zip(boxes, scores, strict=True):
                x, y = (box.left() + box.right()) / 2, (box.top() + box.bottom()) / 2
                centre = (matrix @ (x, y, 1) + 0.5) * times - 0.5
                proposals.append(_Proposal(score, centre, box.width() * times.mean(), turn))
        return proposals

    def _decide(self, image: Pixels, proposals: Iterable[_Proposal]) -> list[Face]:
        """Place landmarks in the proposals, the surest first, and keep what is a face, once."""
        faces: list[Face] = []
        for proposal in sorted(proposals, key=lambda one: -one.score):
            if any(_overlap(box_around(proposal.centre, proposal.side), f.box) for f in faces):
                continue
            face = self._face(image, proposal)
            if any(_overlap(face.box, other.box) for other in faces):
                continue
            if face.is_sure or self._confirms(image, face):
                faces.append(face)
        return faces

    def _face(self, image: Pixels, proposal: _Proposal) -> Face:
        landmarks = self._place(image, proposal)
        square = ffhq_alignment(landmarks, PREDICTOR_SIDE)
        x, y, share = ALIGNED_BOX
        centre = square.to_photograph(np.array([[x, y]]) * PREDICTOR_SIDE - 0.5)[0]
        box = box_around(np.round(centre, 3), round(share * square.native_side, 3))
        certain = CERTAIN_TILTED if proposal.turn else CERTAIN
        return Face(box, proposal.score, landmarks, proposal.score >= certain)

    def _place(self, image: Pixels, proposal: _Proposal) -> Points:
        """Place landmarks in a proposal, then again in the aligned square that they make."""
        right = proposal.side / PROPOSED_SHARE / 2 * _direction(proposal.turn)
        square = square_alignment(proposal.centre, right, PREDICTOR_SIDE)
        box = (0.5, 0.5, PROPOSED_SHARE)
        landmarks = square.to_photograph(self._predict(crop(image, square), box))
        for _ in range(REFINEMENTS):
            square = ffhq_alignment(landmarks, PREDICTOR_SIDE)
            landmarks = square.to_photograph(self._predict(crop(image, square), ALIGNED_BOX))
        return np.round(landmarks, 3)  # so that a JSON file that has them stays short

    def _predict(self, face: Pixels, box: tuple[float, float, float]) -> Points:
        """Place landmarks in a crop; ``box`` has its centre and side in the crop's side."""
        side = FINER * len(face)  # dlib rounds to whole pixels
        fine = cv2.resize(face, (side, side), interpolation=cv2.INTER_LINEAR)
        x, y, half = box[0] * side, box[1] * side, box[2] * side / 2
        edges = (round(edge) for edge in (x - half, y - half, x + half - 1, y + half - 1))
        found = self._predictor(fine, self._dlib.rectangle(*edges))
        points = np.array([(point.x, point.y) for point in found.parts()], dtype=np.float64)
        return (points + 0.5) / FINER - 0.5

    def _confirms(self, image: Pixels, face: Face) -> bool:
        """Ask the network whether it sees a face in the aligned square, where it should be."""
        seen = self._network(crop(image, face.alignment(NETWORK_SIDE)), 0)
        x, y = ALIGNED_BOX[0] * NETWORK_SIDE, ALIGNED_BOX[1] * NETWORK_SIDE
        return any(
            hypot(one.rect.center().x - x, one.rect.center().y - y) < NETWORK_NEAR * NETWORK_SIDE
            for one in seen
        )


def _resized(image: Pixels, pixels: int, enlarge: float) -> Pixels:
    """Copy an image at ``pixels`` pixels, or less where that is ``enlarge`` times its sides."""
    height, width = image.shape[:2]
    times = min(enlarge, sqrt(pixels / (height * width)))
    size = (max(1, int(width * times)), max(1, int(height * times)))
    how = cv2.INTER_AREA if times < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8)


def _turned(image: Pixels, turn: int) -> tuple[npt.NDArray[np.float64], Pixels]:
    """Turn an image back by ``turn`` degrees, whole, with black corners.

    Returns:
        The matrix [2, 3] from the copy to the image, and the copy.
    """
    if turn == 0:
        return np.eye(2, 3), image
    height, width = image.shape[:2]
    x, y = _direction(turn)
    size = (round(abs(x) * width + abs(y) * height), round(abs(y) * width + abs(x) * height))
    turning = np.array([[x, -y], [y, x]])
    middles = np.array([width - 1, height - 1]) / 2, np.array([size[0] - 1, size[1] - 1]) / 2
    matrix = np.column_stack([turning, middles[0] - turning @ middles[1]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return matrix, np.asarray(cv2.warpAffine(image, matrix, size, flags=flags), dtype=np.uint8)


def _direction(turn: float) -> Points:
    """Return where the x-axis of something points that is turned clockwise by so many degrees."""
    return np.array([cos(radians(turn)), sin(radians(turn))])


def _overlap(one: Box, other: Box) -> bool:
    """Say whether two boxes are of one face."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    tall = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, wide) * max(0.0, tall)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared
    return shared > OVERLAP * union
