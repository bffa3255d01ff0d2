"""Putting restored faces back into their photograph, so that nobody sees where.

A face goes back through the exact inverse of its `Alignment`, by a cubic spline, which is fitted
to the crop where that shrinks, and is blended by a mask that lies inside the crop. Pixels where the
mask is 0 are not touched, and everything is rounded, never truncated.

What X is blended in depends on the side S of the crop:

- A face that is at most S wide in the photograph was seen by the restorer in full. It is replaced:
  X = the restored crop, reduced. Noise of the photograph that the restorer removed is gone.
- A larger face was reduced for the restorer, which never saw its finer detail. What the restorer
  did is added to it: X = the photograph + (restored - crop). Detail and grain finer than the crop
  stay as they are; a restorer that changes nothing leaves such a face as it is, to the bit.

Where the squares of several faces overlap, a pixel belongs to the face to whose centre it is
nearest, in sides of its square, with a soft border. The order in which they are laid does not
matter beyond rounding, where no level is driven out of its range.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import numpy.typing as npt
from scipy import interpolate, ndimage

from models.faces.alignment import Alignment

Levels = npt.NDArray[np.unsignedinteger]
"""[H, W, C] uint8 or uint16."""
Floats = npt.NDArray[np.float64]

FEATHER = 0.25  # width of the mask's border, in half sides of the square
POWER = 4  # of the mask's contours: rounded squares, |x|^4 + |y|^4
SHARPNESS = 8  # of the border between two faces: in its middle a quarter nearer is 99 %
LEAST = 8  # pixels to which a crop is reduced at most
STRIP = 1 << 20  # pixels that are computed at a time


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A restored face and what it was, both in the photograph's own levels and colours."""

    alignment: Alignment
    restored: Levels
    """[size, size, C]."""
    crop: Levels
    """[size, size, C]: what the restorer was given."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A face as a picture over the photograph: its colours, and how much they cover."""

    x: int
    """Column of the photograph over which the first column lies."""
    y: int
    """Row of the photograph over which the first row lies."""
    colours: Levels
    """[h, w, C]; 0 where nothing is covered."""
    alpha: Levels
    """[h, w]: 0 leaves the photograph as it is, the greatest value covers it."""


def layer(levels: Levels, patches: Sequence[Patch], number: int) -> Layer:
    """Make the layer of one of several faces that are laid one after the other.

    Args:
        levels: the photograph, with the faces before this one laid over it by `lay_over`.
        patches: all faces of the photograph.
        number: which of them.

    Raises:
        ValueError: a face of another type or of other channels than the photograph.
    """
    patch = patches[number]
    _check(levels, patch)
    left, top, right, bottom = bounds(patch.alignment, levels.shape[1], levels.shape[0])
    shape = (max(0, bottom - top), max(0, right - left))
    colours = np.zeros((*shape, levels.shape[2]), levels.dtype)
    alpha = np.zeros(shape, levels.dtype)
    if alpha.size:
        source = _source(patch)
        for first in range(0, shape[0], rows := max(1, STRIP // shape[1])):
            part = slice(first, min(first + rows, shape[0]))
            box = (left, top + part.start, right, top + part.stop)
            alpha[part] = _quantised(_cover(patches, number, box), levels.dtype)
            values = source.sampled(box)
            if source.is_added:
                values += levels[box[1] : box[3], left:right]
            covered = alpha[part][..., None] > 0
            colours[part] = np.where(covered, _rounded(values, levels.dtype), 0)
    return Layer(left, top, colours, alpha)


def lay_over(levels: Levels, layer: Layer) -> None:
    """Lay a layer over the photograph, in place: what an editor does with its normal mode."""
    height, width = layer.alpha.shape
    below = levels[layer.y : layer.y + height, layer.x : layer.x + width]
    full = int(np.iinfo(levels.dtype).max)
    for first in range(0, height, rows := max(1, STRIP // max(1, width))):
        part = slice(first, first + rows)
        cover = layer.alpha[part, :, None].astype(np.uint32)
        mixed = below[part] * (full - cover) + layer.colours[part] * cover
        below[part] = (mixed + full // 2) // full


def bounds(alignment: Alignment, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the pixels of a photograph in a face's square: left, top, and past right, bottom."""
    corners = alignment.corners
    left, top = (max(0, floor(low)) for low in corners.min(axis=0))
    right, bottom = (ceil(high) + 1 for high in corners.max(axis=0))
    return left, top, min(right, width), min(bottom, height)


def mask(distance: Floats) -> Floats:
    """Return how much of the restored face is shown: 1 in the middle, 0 from the border on.

    Its first and second derivatives are 0 at both ends (Perlin 2002).

    Args:
        distance: from the centre, by `distance_from_centre`.
    """
    inside: Floats = np.clip((1 - distance) / FEATHER, 0, 1)
    return inside**3 * (inside * (6 * inside - 15) + 10)


def distance_from_centre(alignment: Alignment, box: tuple[int, int, int, int]) -> Floats:
    """Return the distance of each pixel from a square's centre, in half sides.

    It is (x^4 + y^4)^(1/4), 1 in the middles of the square's edges, more in its corners.

    Args:
        alignment: the square.
        box: of the photograph's pixels: left, top, and past right, bottom.

    Returns:
        [bottom - top, right - left].
    """
    left, top, right, bottom = box
    to_crop = np.linalg.inv(alignment.matrix[:, :2])
    rows = np.arange(top, bottom)[:, None] - alignment.matrix[1, 2]
    columns = np.arange(left, right)[None] - alignment.matrix[0, 2]
    centre = (alignment.size - 1) / 2
    x, y = ((row[0] * columns + row[1] * rows - centre) * 2 / alignment.size for row in to_crop)
    distance: Floats = (x**POWER + y**POWER) ** (1 / POWER)
    return distance


def _cover(patches: Sequence[Patch], number: int, box: tuple[int, int, int, int]) -> Floats:
    """Return how much one face has to cover, with those after it laid over it, 0 to 1.

    A face that is added covers nothing of what lies below it.
    """
    near = [n for n, patch in enumerate(patches) if _meets(bounds(patch.alignment, *box[2:]), box)]
    distances = [distance_from_centre(patches[n].alignment, box) for n in near]
    claims = [np.clip(1 - distance, 0, None) ** SHARPNESS for distance in distances]
    total = np.maximum(np.sum(claims, axis=0), np.finfo(np.float64).tiny)
    shares = [
        mask(distance) * claim / total for distance, claim in zip(distances, claims, strict=True)
    ]
    left = np.ones_like(total)
    for n, share in zip(near, shares, strict=True):
        if n > number and not _is_added(patches[n].alignment):
            left -= share
    share = shares[near.index(number)]
    cover: Floats = np.zeros_like(share)
    np.divide(share, np.maximum(left, share), out=cover, where=share > 0)
    return cover


def _meets(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    left, top = max(one[0], other[0]), max(one[1], other[1])
    return left < min(one[2], other[2]) and top < min(one[3], other[3])


def _is_added(alignment: Alignment) -> bool:
    """Say whether a restored face is added to what is there, or replaces it."""
    return alignment.scale > 1


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """What is sampled at the photograph's pixels."""

    coefficients: list[Floats]
    """Of the cubic spline of each channel."""
    matrix: Floats
    """[2, 3], from (x, y) of the photograph to (x, y) of these."""
    is_added: bool

    def sampled(self, box: tuple[int, int, int, int]) -> Floats:
        """Return values [h, w, C] of the photograph's pixels in a box."""
        left, top, right, bottom = box
        shape = (bottom - top, right - left)
        start = self.matrix @ (left, top, 1)
        values = np.empty((*shape, len(self.coefficients)))
        for channel, coefficients in enumerate(self.coefficients):
            ndimage.affine_transform(
                coefficients,
                self.matrix[::-1, 1::-1],  # SciPy counts (y, x)
                offset=start[::-1],
                output=values[..., channel],
                output_shape=shape,
                order=3,
                mode="mirror",
                prefilter=False,
            )
        return values


def _source(patch: Patch) -> _Source:
    """Prepare what is sampled: the restored face, reduced; or what it adds, enlarged."""
    alignment, size = patch.alignment, patch.alignment.size
    is_added = _is_added(alignment)
    values = patch.restored.astype(np.float64)
    if is_added:
        values -= patch.crop
    side = min(size, max(LEAST, ceil(alignment.native_side)))
    channels = [_reduced(values[..., channel], side) for channel in range(values.shape[2])]
    to_crop = np.linalg.inv(np.vstack([alignment.matrix, (0, 0, 1)]))[:2]
    to_reduced = to_crop * (side / size)
    to_reduced[:, 2] += (side / size - 1) / 2  # pixel centres are at integers in both
    splines = [ndimage.spline_filter(channel, order=3, mode="mirror") for channel in channels]
    return _Source(splines, to_reduced, is_added)


def _reduced(values: Floats, side: int) -> Floats:
    """Reduce [S, S] to [side, side]: the cubic spline of so many knots that is nearest to it.

    Least squares (Unser 1999) keep what a picture of that size can show, where a filter against
    aliasing would soften it: a crop that was enlarged from so many pixels comes back.
    """
    size = len(values)
    if side == size:
        return values
    places = (np.arange(side) + 0.5) * size / side - 0.5
    knots = np.r_[(0,) * 4, places[2:-2], (size - 1,) * 4]
    for _ in range(2):  # down the columns, then along the rows
        spline = interpolate.make_lsq_spline(np.arange(size), values, knots)
        values = np.ascontiguousarray(spline(places).T)
    return values


def _quantised(cover: Floats, kind: np.dtype[np.unsignedinteger]) -> Levels:
    return np.rint(cover * np.iinfo(kind).max).astype(kind)


def _rounded(values: Floats, kind: np.dtype[np.unsignedinteger]) -> Levels:
    return np.rint(values).clip(0, np.iinfo(kind).max).astype(kind)


def _check(levels: Levels, patch: Patch) -> None:
    expected = (patch.alignment.size, patch.alignment.size, levels.shape[2])
    for name, given in (("restored face", patch.restored), ("crop", patch.crop)):
        if given.shape != expected or given.dtype != levels.dtype:
            raise ValueError(
                f"a {name} of {given.dtype} {list(given.shape)}: for this photograph and alignment "
                f"it has to be {levels.dtype} {list(expected)}"
            )
