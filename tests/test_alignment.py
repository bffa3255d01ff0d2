"""Alignment: FFHQ's square, coordinates there and back, and crops without a shift or an alias."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from models.faces.alignment import (
    Alignment,
    Pixels,
    Points,
    crop,
    ffhq_alignment,
    square_alignment,
)

SIDE = 96


def _smooth(side: int = SIDE) -> Pixels:
    """Draw waves of at least 24 pixels."""
    y, x = np.mgrid[:side, :side]
    waves = [np.sin(x / 4 + phase) * np.cos(y / 5 - phase) for phase in (0.0, 1.0, 2.0)]
    return np.rint(128 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)


def _similarity(side: float, turn: float, centre: tuple[float, float], size: int) -> Alignment:
    return square_alignment(
        np.array(centre), np.array([np.cos(turn), np.sin(turn)]) * side / 2, size
    )


def _inverse(alignment: Alignment, size: int) -> Alignment:
    """Return the alignment that finds the photograph, of a square form, in the crop."""
    columns = np.linalg.inv(alignment.matrix[:, :2])
    return Alignment(size, np.column_stack([columns, -columns @ alignment.matrix[:, 2]]))


similarities = st.builds(
    _similarity,
    side=st.floats(8, 400),
    turn=st.floats(-3.1, 3.1),
    centre=st.tuples(st.floats(-50, 150), st.floats(-50, 150)),
    size=st.integers(8, 256),
)


@settings(deadline=None, max_examples=30)
@given(similarities, st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 2), min_size=1, max_size=5))
def test_points_come_back(alignment: Alignment, points: list[tuple[float, float]]) -> None:
    """A point of the photograph, mapped to the crop and back, moves by less than 1e-9 pixels."""
    given_points = np.array(points)

    back = alignment.to_photograph(alignment.to_crop(given_points))

    assert np.abs(back - given_points).max() < 1e-9


@given(similarities, st.integers(8, 256))
def test_a_square_knows_its_measures(alignment: Alignment, size: int) -> None:
    """The side and the corners are the photograph's, whatever the crop's size."""
    resized = alignment.resized(size)
    edges = np.roll(alignment.corners, -1, axis=0) - alignment.corners

    assert np.allclose(np.hypot(*edges.T), alignment.native_side)
    assert np.allclose(resized.corners, alignment.corners)
    assert np.isclose(resized.native_side, alignment.native_side)
    assert np.isclose(resized.rotation, alignment.rotation)


@settings(deadline=None, max_examples=15)
@given(
    turn=st.floats(-3.1, 3.1), zoom=st.floats(1.0, 3.0), shift=st.tuples(*[st.floats(-5, 5)] * 2)
)
def test_a_smooth_picture_comes_back(turn: float, zoom: float, shift: tuple[float, float]) -> None:
    """What was cropped without reduction and put back differs by two levels at most."""
    image = _smooth()
    centre = ((SIDE - 1) / 2 + shift[0], (SIDE - 1) / 2 + shift[1])
    side = 64.0
    alignment = _similarity(side, turn, centre, round(side * zoom))

    back = crop(crop(image, alignment), _inverse(alignment, SIDE))

    y, x = np.mgrid[:SIDE, :SIDE]
    inside = np.hypot(x - centre[0], y - centre[1]) < side / 2 - 4
    apart = np.abs(back[inside].astype(int) - image[inside].astype(int))
    assert apart.max() <= 2


@pytest.mark.parametrize("place", [(0, 0), (17, 40)])
def test_whole_pixels_are_copied(place: tuple[int, int]) -> None:
    """A crop that neither turns nor scales holds the photograph's pixels, unshifted, to the bit."""
    image = data.astronaut()[::4, ::4]
    x, y = place
    size = 128 if place == (0, 0) else 64

    cut = crop(image, Alignment(size, np.array([[1.0, 0, x], [0, 1.0, y]])))

    assert np.array_equal(cut, image[y : y + size, x : x + size])


def test_quarter_turns_are_exact() -> None:
    """A crop turned by 90 degrees is the picture turned by 90 degrees, to the bit."""
    image = data.astronaut()[::8, ::8]
    middle = np.array([31.5, 31.5])

    turned = crop(image, square_alignment(middle, np.array([0.0, 32.0]), 64))

    assert np.array_equal(turned, np.rot90(image))


@pytest.mark.parametrize("turn", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("times", [1.5, 2.0, 3.7, 7.3])
def test_a_reduction_does_not_alias(turn: float, times: float) -> None:
    """A chessboard of single pixels becomes the gray of its mean, without a pattern."""
    y, x = np.mgrid[:256, :256]
    board = np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, axis=-1)
    size = round(128 / times)

    reduced = crop(board, _similarity(size * times, turn, (127.5, 127.5), size)).astype(int)

    assert np.abs(reduced - 127.5).max() <= 6


@settings(deadline=None, max_examples=10)
@given(turn=st.floats(-3.1, 3.1), times=st.floats(1.01, 6.0))
def test_a_reduction_shifts_nothing(turn: float, times: float) -> None:
    """A plane's levels after a reduction are those of its own function at the pixel's centres."""
    y, x = np.mgrid[:256, :256]
    plane = np.rint(np.stack([x, y, 255 - x], axis=-1)).astype(np.uint8)
    size = int(150 / times)
    alignment = _similarity(size * times, turn, (120.3, 131.9), size)

    reduced = crop(plane, alignment)

    rows, columns = np.mgrid[:size, :size]
    places = alignment.to_photograph(np.column_stack([columns.ravel(), rows.ravel()]))
    expected = np.column_stack([places, 255 - places[:, 0]]).reshape(size, size, 3)
    assert np.abs(reduced - expected).max() <= 2


@pytest.mark.parametrize("centre", [(0.0, 40.0), (95.0, 95.0), (-30.0, 47.0)])
@pytest.mark.parametrize("size", [40, 80])
def test_what_lies_beyond_the_border_is_reflected(centre: tuple[float, float], size: int) -> None:
    """A square partly, or mostly, outside gives the same crop as one in a picture padded so."""
    image = _smooth()
    alignment = _similarity(80.0, 0.4, centre, size)
    padded = np.pad(image, ((96, 96), (96, 96), (0, 0)), mode="reflect")[1:-1, 1:-1]
    inside = Alignment(size, alignment.matrix + np.array([[0, 0, 95.0], [0, 0, 95.0]]))

    apart = crop(image, alignment).astype(int) - crop(padded, inside)

    assert np.abs(apart).max() <= 1


def test_a_crop_reads_what_it_needs() -> None:
    """A small square of a huge picture is cut before it is converted: the picture is a view."""
    image = np.broadcast_to(np.uint8(77), (40_000, 40_000, 3))  # 4.8 GB, were it copied

    cut = crop(image, _similarity(100.0, 0.5, (39_990.0, 39_990.0), 64))

    assert np.array_equal(cut, np.full((64, 64, 3), 77))


def _face(eye_to_eye: float, eye_to_mouth: float) -> Points:
    """Return 68 points whose eyes are level with y = 0 and centred at x = 0."""
    points = np.zeros((68, 2))
    points[36:42] = (-eye_to_eye / 2, 0)
    points[42:48] = (eye_to_eye / 2, 0)
    points[[48, 54]] = (-eye_to_eye / 3, eye_to_mouth), (eye_to_eye / 3, eye_to_mouth)
    return points


@pytest.mark.parametrize(
    ("eye_to_eye", "eye_to_mouth", "side"), [(60, 60, 240.0), (30, 60, 216.0), (60, 20, 240.0)]
)
def test_ffhq_square(eye_to_eye: float, eye_to_mouth: float, side: float) -> None:
    """The side is 4 distances of the eyes or 3.6 to the mouth, whichever is more; a bit lower."""
    alignment = ffhq_alignment(_face(eye_to_eye, eye_to_mouth), 512)

    assert np.isclose(alignment.native_side, side)
    assert np.allclose(alignment.corners.mean(axis=0), (0, 0.1 * eye_to_mouth))
    assert np.isclose(alignment.rotation, 0)


@given(similarities)
def test_ffhq_square_turns_with_the_face(moved: Alignment) -> None:
    """A face that is turned, scaled and shifted has a square that is so too."""
    face = _face(60, 70)
    first = ffhq_alignment(face, 64)

    second = ffhq_alignment(moved.to_photograph(face), 64)

    assert np.allclose(second.corners, moved.to_photograph(first.corners))


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (np.zeros((5, 2)), r"\[5, 2\]: FFHQ's alignment takes 68 points"),
        (np.full((68, 2), np.nan), "all finite"),
        (np.zeros((68, 2)), "span no face"),
    ],
)
def test_no_face_no_square(points: Points, said: str) -> None:
    """Landmarks that cannot be a face's are refused."""
    with pytest.raises(ValueError, match=said):
        ffhq_alignment(points, 512)


@pytest.mark.parametrize(
    ("size", "matrix"),
    [
        (0, [[1, 0, 0], [0, 1, 0]]),
        (8, [[1, 0], [0, 1]]),
        (8, [[1, 0.1, 0], [0, 1, 0]]),  # sheared
        (8, [[-1, 0, 0], [0, 1, 0]]),  # mirrored
        (8, [[0, 0, 0], [0, 0, 0]]),
        (8, [[np.nan, 0, 0], [0, 1, 0]]),
    ],
)
def test_an_alignment_is_a_similarity(size: int, matrix: list[list[float]]) -> None:
    """Anything but a turned, scaled and shifted square is refused."""
    with pytest.raises(ValueError, match=r"an alignment has|is no similarity"):
        Alignment(size, np.array(matrix))
