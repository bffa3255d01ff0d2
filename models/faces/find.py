"""What finding faces gives: a box, a score and 68 landmarks a face. `dlib_finder` does it."""

from dataclasses import dataclass
from typing import Protocol

from models.faces.alignment import Alignment, Pixels, Points, ffhq_alignment

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in the photograph; pixel centres at integers."""


@dataclass(frozen=True, eq=False)
class Face:
    """A face of a photograph."""

    box: Box
    """Around brows, chin and cheeks; it is upright even if the face is tilted."""
    score: float | None
    """The higher, the surer; what it counts is the finder's own. None: a person gave the face."""
    landmarks: Points
    """[68, 2] in the photograph, of the iBUG 300-W scheme."""
    is_sure: bool = True
    """There is a face, and just here; False: so unclear a face that its place may be wrong."""

    def alignment(self, size: int) -> Alignment:
        """Return FFHQ's square of this face, as a crop of ``size`` pixels."""
        return ffhq_alignment(self.landmarks, size)


class FaceFinder(Protocol):
    """Finds faces, whatever their tilt; the same photograph gives the same faces."""

    @property
    def identity(self) -> str:
        """A digest of the weights and of every setting that decides what is found."""

    def find(self, image: Pixels) -> list[Face]:
        """Find the faces of a photograph; ordered from left to right."""

    def find_main(self, image: Pixels) -> Face | None:
        """Find the largest face of a picture that may be an aligned face itself; quickly.

        A sure face goes before a larger one that is not.
        """

    def landmarks(self, image: Pixels, box: Box) -> Points:
        """Place 68 landmarks, [68, 2], on the face that somebody says is in ``box``."""


def box_around(centre: Points, side: float) -> Box:
    """Return the square of ``side`` pixels around ``centre``, [2]."""
    (x, y), half = centre.tolist(), side / 2
    return x - half, y - half, x + half, y + half
