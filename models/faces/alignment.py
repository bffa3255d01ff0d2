"""How a face lies in a photograph, and the square crop that a face restorer is given.

Coordinates are (x, y) with pixel centres at integers, in the photograph and in the crop, so that a
picture of W x H pixels reaches from -0.5 to W - 0.5 and from -0.5 to H - 0.5. An alignment is a
similarity: FFHQ's crop is a square that is turned, scaled and shifted, and never sheared.
"""

from dataclasses import dataclass
from math import ceil, degrees, floor, hypot

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Pixels = npt.NDArray[np.uint8]
"""RGB uint8 [H, W, 3]."""
Points = npt.NDArray[np.float64]
"""[N, 2], each (x, y)."""

LANDMARKS = 68  # points of the iBUG 300-W scheme, counted from 0 as dlib counts them
EYES = (slice(36, 42), slice(42, 48))  # the one to the left in the picture, then the other
MOUTH_CORNERS = (48, 54)
EYES_TO_SIDE, MOUTH_TO_SIDE = 2.0, 1.8  # FFHQ: half a side of the square, in these distances
DOWN = 0.1  # FFHQ: from between the eyes to the square's centre, in the distance to the mouth
EDGE = 3  # pixels of a crop around it, for the window of the filter that reduces it
MARGIN = (
    18  # pixels around a crop's square: EDGE, turned; and the spline, which falls by 0.27 a pixel
)


@dataclass(frozen=True, eq=False)
class Alignment:
    """A square of a photograph, seen as a crop of ``size`` x ``size`` pixels.

    Raises:
        ValueError: the size is not positive, or the matrix is no similarity.
    """

    size: int
    """Of the crop's side, in pixels of the crop."""
    matrix: npt.NDArray[np.float64]
    """[2, 3]: (x, y) in the photograph = matrix @ (x, y, 1) of the crop."""

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if self.size < 1 or matrix.shape != (2, 3):
            raise ValueError(
                f"size {self.size} and a matrix of shape {list(matrix.shape)}: an alignment has a "
                "positive size and a matrix of shape [2, 3]"
            )
        (a, b), (c, d) = matrix[:, :2]
        apart = hypot(a - d, b + c)
        if not apart < 1e-6 * hypot(a, c) or not np.isfinite(matrix).all():
            raise ValueError(
                f"the matrix {matrix.tolist()} is no similarity: its first two columns have to be "
                "(a, c) and (-c, a), not 0"
            )
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @property
    def scale(self) -> float:
        """Pixels of the photograph to a pixel of the crop: above 1 the crop is a reduction."""
        return hypot(*self.matrix[:, 0])

    @property
    def native_side(self) -> float:
        """The side of the face's square in the photograph, in pixels of the photograph."""
        return self.size * self.scale

    @property
    def rotation(self) -> float:
        """How far the face is turned clockwise in the photograph, in degrees, from -180 to 180."""
        x, y = self.matrix[:, 0]
        return degrees(np.arctan2(y, x))

    @property
    def corners(self) -> Points:
        """The square's corners in the photograph, [4, 2]; clockwise, from the crop's top left."""
        first, last = -0.5, self.size - 0.5
        return self.to_photograph(
            np.array([(first, first), (last, first), (last, last), (first, last)])
        )

    def to_photograph(self, points: Points) -> Points:
        """Map points [N, 2] of the crop to the photograph."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    def to_crop(self, points: Points) -> Points:
        """Map points [N, 2] of the photograph to the crop."""
        return (points - self.matrix[:, 2]) @ np.linalg.inv(self.matrix[:, :2]).T

    def resized(self, size: int) -> "Alignment":
        """Return the alignment of the same square whose crop has another size."""
        return square_alignment(
            self.corners.mean(axis=0), self.matrix[:, 0] * (self.size / 2), size
        )


def square_alignment(centre: Points, right: Points, size: int) -> Alignment:
    """Align the square around ``centre`` whose right edge has its middle at ``centre + right``.

    Args:
        centre: [2], in the photograph.
        right: [2], half a side, in the direction that is rightwards in the crop.
        size: of the crop's side, in pixels.

    Raises:
        ValueError: ``right`` is 0, or the size is not positive.
    """
    half = (size - 1) / 2  # the crop's centre, in its own coordinates
    x = np.asarray(right, dtype=np.float64) * (2 / size)
    turned = np.array([[x[0], -x[1]], [x[1], x[0]]])
    return Alignment(size, np.column_stack([turned, centre - turned @ (half, half)]))


def ffhq_alignment(landmarks: Points, size: int) -> Alignment:
    """Align a face as FFHQ's faces are aligned (Karras et al. 2019, appendix A).

    With e from eye to eye and m from between the eyes to between the mouth's corners, the crop's
    x-axis has the direction of e - rot90(m), half its side is max(2 |e|, 1.8 |m|), and its centre
    is between the eyes plus 0.1 m.

    Args:
        landmarks: [68, 2], of the iBUG 300-W scheme, in the photograph.
        size: of the crop's side, in pixels.

    Raises:
        ValueError: another number of points, or points that span no face.
    """
    landmarks = np.asarray(landmarks, dtype=np.float64)
    if landmarks.shape != (LANDMARKS, 2) or not np.isfinite(landmarks).all():
        raise ValueError(
            f"landmarks of shape {list(landmarks.shape)}: FFHQ's alignment takes {LANDMARKS} "
            "points (x, y), all finite"
        )
    left_eye, right_eye = (landmarks[eye].mean(axis=0) for eye in EYES)
    between_eyes = (left_eye + right_eye) / 2
    eye_to_eye = right_eye - left_eye
    eye_to_mouth = landmarks[list(MOUTH_CORNERS)].mean(axis=0) - between_eyes
    direction = eye_to_eye + np.array([eye_to_mouth[1], -eye_to_mouth[0]])
    length = hypot(*direction)
    half_side = max(EYES_TO_SIDE * hypot(*eye_to_eye), MOUTH_TO_SIDE * hypot(*eye_to_mouth))
    if length < 1e-6 * half_side or half_side == 0:
        raise ValueError("the eyes and the mouth of these landmarks span no face")
    return square_alignment(
        between_eyes + DOWN * eye_to_mouth, direction * (half_side / length), size
    )


def crop(image: Pixels, alignment: Alignment) -> Pixels:
    """Sample the aligned square of a photograph.

    A cubic spline goes through the pixels. Where the crop is smaller than the square, both steps
    of the reduction have a Lanczos filter, as in FFHQ's own preparation, so that nothing aliases.
    What lies beyond the photograph is its reflection.

    Args:
        image: RGB uint8 [H, W, 3].
        alignment: where the face is.

    Returns:
        RGB uint8 [size, size, 3]. With a matrix of (1, 0, x), (0, 1, y) and whole x, y, these are
        the photograph's own pixels. Memory beyond the result follows the square, not the
        photograph.
    """
    region, origin = _region(image, alignment)
    pixel = np.ones(2)  # sides of a pixel of the region, in the photograph's
    times = floor(alignment.scale)
    if times > 1:
        height, width = region.shape[:2]
        reduced = (ceil(width / times), ceil(height / times))
        region = _lanczos(region, reduced)
        pixel = np.array([width / reduced[0], height / reduced[1]])
        origin = origin + (pixel - 1) / 2  # the centre of its first pixel
    if alignment.scale <= 1:
        return _spline(region, _relative(alignment, origin, pixel), alignment.size)
    wide = alignment.size + 2 * EDGE
    wider = square_alignment(
        alignment.corners.mean(axis=0), alignment.matrix[:, 0] * wide / 2, 2 * wide
    )
    sampled = _spline(region, _relative(wider, origin, pixel), 2 * wide)
    return _lanczos(sampled, (wide, wide))[EDGE:-EDGE, EDGE:-EDGE].copy()


def _region(image: Pixels, alignment: Alignment) -> tuple[Pixels, Points]:
    """Cut out the square's bounding box with a margin, and say where it begins, (x, y).

    Beyond the photograph it holds the reflection.
    """
    margin = MARGIN * max(1.0, alignment.scale)
    low = np.floor(alignment.corners.min(axis=0) - margin)
    high = np.ceil(alignment.corners.max(axis=0) + margin)
    columns, rows = (
        _reflected(np.arange(low[axis], high[axis] + 1, dtype=int), image.shape[1 - axis])
        for axis in (0, 1)
    )
    return image[rows[:, None], columns], low


def _reflected(places: npt.NDArray[np.int_], length: int) -> npt.NDArray[np.int_]:
    """Fold places on a line into 0 .. length - 1, as mirrors at the first and the last would."""
    folded = places % max(1, 2 * (length - 1))
    return np.minimum(folded, 2 * (length - 1) - folded)


def _relative(alignment: Alignment, origin: Points, pixel: Points) -> npt.NDArray[np.float64]:
    """Return the alignment's matrix, [2, 3], in a region's coordinates."""
    matrix = alignment.matrix.copy()
    matrix[:, 2] -= origin
    return matrix / pixel[:, None]


def _lanczos(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize to ``size``, (width, height)."""
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _spline(image: Pixels, matrix: npt.NDArray[np.float64], size: int) -> Pixels:
    """Sample a cubic spline through the pixels, at the places that ``matrix`` gives; rounded."""
    result = np.empty((size, size, 3), np.uint8)
    for channel in range(3):
        values = ndimage.affine_transform(
            image[..., channel].astype(np.float64),
            matrix[::-1, 1::-1],  # SciPy counts (y, x)
            offset=matrix[::-1, 2],
            output_shape=(size, size),
            order=3,
            mode="mirror",
        )
        result[..., channel] = np.rint(values).clip(0, 255)
    return result
