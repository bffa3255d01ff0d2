"""A face goes back to where it came from, and nobody sees where it was cut."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from models.faces.alignment import Alignment, crop, square_alignment
from models.faces.paste import (
    FEATHER,
    Layer,
    Patch,
    bounds,
    distance_from_centre,
    lay_over,
    layer,
    mask,
)

Array = np.ndarray[Any, Any]
PHOTOGRAPH: Array = data.astronaut()[:240, 60:380].copy()  # a face, and what is around it
SIZE = 96


def square(x: float, y: float, side: float, turned: float, size: int = SIZE) -> Alignment:
    """Align a square by its centre, its side in the photograph and its angle in degrees."""
    angle = np.deg2rad(turned)
    right = side / 2 * np.array([np.cos(angle), np.sin(angle)])
    return square_alignment(np.array([x, y]), right, size)


squares = st.builds(
    square,
    st.floats(-20, 340),
    st.floats(-20, 260),
    st.floats(20, 200),
    st.floats(-180, 180),
    st.sampled_from([33, 64, SIZE]),
)


def pasted(photograph: Array, patches: Sequence[Patch]) -> tuple[Array, list[Layer]]:
    """Lay all faces over a copy of the photograph, one after the other."""
    result, layers = photograph.copy(), []
    for number in range(len(patches)):
        layers.append(layer(result, patches, number))
        lay_over(result, layers[-1])
    return result, layers


def restored(
    photograph: Array, alignments: Sequence[Alignment], restorer: Callable[[Array], Array]
) -> tuple[Array, list[Layer]]:
    """Crop, restore and paste faces."""
    crops = [crop(photograph, alignment) for alignment in alignments]
    patches = [
        Patch(alignment, restorer(face), face)
        for alignment, face in zip(alignments, crops, strict=True)
    ]
    return pasted(photograph, patches)


def covered(alignment: Alignment, photograph: Array) -> Array:
    """Return where a square shows its face, 0 to 1, over a whole photograph."""
    height, width = photograph.shape[:2]
    return mask(distance_from_centre(alignment, (0, 0, width, height)))


@settings(max_examples=25)
@given(alignment=squares)
def test_a_restorer_that_changes_nothing_changes_nothing(alignment: Alignment) -> None:
    """There and back: of a large face every level, of a small one within 3 levels (rms)."""
    result, _ = restored(PHOTOGRAPH, [alignment], lambda face: face)
    moved = result.astype(float) - PHOTOGRAPH
    shown = covered(alignment, PHOTOGRAPH) > 0

    if alignment.scale > 1:
        assert not moved.any()
    elif shown.any():
        assert np.sqrt(np.mean(moved[shown] ** 2)) <= 3
        assert abs(moved[shown].mean()) <= 1


@settings(max_examples=25)
@given(alignment=squares)
def test_pixels_outside_keep_every_level(alignment: Alignment) -> None:
    """Whatever a restorer makes, nothing changes beyond the square, nor at its border."""
    result, (made,) = restored(PHOTOGRAPH, [alignment], lambda face: 255 - face)
    changed = (result != PHOTOGRAPH).any(axis=2)
    distance = distance_from_centre(alignment, (0, 0, PHOTOGRAPH.shape[1], PHOTOGRAPH.shape[0]))
    left, top, right, bottom = bounds(alignment, PHOTOGRAPH.shape[1], PHOTOGRAPH.shape[0])

    assert not changed[distance >= 1].any()
    outside = np.ones(changed.shape, bool)
    outside[top : max(top, bottom), left : max(left, right)] = False
    assert not changed[outside].any()
    assert made.alpha.shape == made.colours.shape[:2]


def smooth(x: Array, y: Array) -> Array:
    """Return a picture of 16 bits, whose steepest slope is 1250 levels a pixel."""
    waves = np.sin(x / 16 + 0.3) * np.cos(y / 21)
    return np.repeat((32768 + 20000 * waves)[..., None], 3, axis=2)


@pytest.mark.parametrize("turned", [0, 33.3, -120])
@pytest.mark.parametrize("side", [40.3, 70.7, 95.5, SIZE, 150.5])
def test_a_face_goes_back_to_a_hundredth_of_a_pixel(side: float, turned: float) -> None:
    """What is drawn in the crop's own coordinates lies in the photograph where they say."""
    alignment = square(160.37, 121.81, side, turned)
    v, u = np.mgrid[:SIZE, :SIZE].astype(float)
    places = alignment.to_photograph(np.stack([u.ravel(), v.ravel()], axis=1))
    drawn = smooth(*places.T.reshape(2, SIZE, SIZE)).round().astype(np.uint16)
    y, x = np.mgrid[:240, :320].astype(float)
    expected = smooth(x, y)
    photograph = np.full((240, 320, 3), 32768, np.uint16)
    middle = covered(alignment, photograph) == 1
    if alignment.scale > 1:  # what is added is what the restorer changed
        result, _ = pasted(photograph, [Patch(alignment, drawn, np.full_like(drawn, 32768))])
    else:
        result, _ = pasted(photograph, [Patch(alignment, drawn, drawn)])
    wrong = result[middle] - expected[middle]

    assert middle.sum() > 0.3 * side**2
    assert np.abs(wrong).max() <= 1250 / 20
    # The shift that explains what is left, from the picture's own slopes.
    slopes = np.stack(np.gradient(expected[..., 0]), axis=-1)[middle]
    shift, *_ = np.linalg.lstsq(slopes, wrong[:, 0], rcond=None)
    assert np.abs(shift).max() <= 0.01


@pytest.mark.parametrize("side", [60, 96, 180])
def test_no_seam_is_steeper_than_the_masks_border(side: float) -> None:
    """A face that is 40 levels too bright fades into the photograph without a step."""
    photograph = np.full((240, 320, 3), 90, np.uint8)
    alignment = square(160, 120, side, 20)
    result, _ = restored(photograph, [alignment], lambda face: face + 40)
    added = result[..., 0].astype(float) - 90
    steepest = 40 * 1.875 / (FEATHER * side / 2)  # the mask's greatest slope

    assert added.max() == 40
    assert added.min() == 0
    for axis in (0, 1):
        assert np.abs(np.diff(added, axis=axis)).max() <= steepest + 1  # a level of rounding


@settings(max_examples=15)
@given(alignment=squares, amount=st.integers(1, 60))
def test_levels_are_rounded(alignment: Alignment, amount: int) -> None:
    """A face brighter by some levels and one darker by as many are mirror images."""
    photograph = np.full((240, 320, 1), 100, np.uint8)
    face = np.full((alignment.size, alignment.size, 1), 100, np.uint8)
    brighter, _ = pasted(photograph, [Patch(alignment, face + np.uint8(amount), face)])
    darker, _ = pasted(photograph, [Patch(alignment, face - np.uint8(amount), face)])

    assert np.array_equal(brighter.astype(int) - 100, 100 - darker.astype(int))
    expected = amount * covered(alignment, photograph)
    assert np.abs(brighter[..., 0] - 100 - expected).max() <= 0.5 + amount / 510 + 1e-6


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_detail_that_no_restorer_saw_stays(kind: type[Any]) -> None:
    """A face larger than the crop keeps its grain, whatever is done to what the crop shows."""
    grain = np.random.default_rng(3).integers(80, 160, (240, 320, 3)).astype(kind)
    alignment = square(150, 110, 180, 12)
    result, _ = pasted(
        grain,
        [Patch(alignment, np.full((SIZE, SIZE, 3), 27, kind), np.full((SIZE, SIZE, 3), 20, kind))],
    )
    middle = covered(alignment, grain) == 1

    assert (result[middle] - grain[middle] == 7).all()


def test_noise_that_the_restorer_removed_is_gone() -> None:
    """A face that the crop shows in full is replaced: nothing is left of its grain."""
    grain = np.random.default_rng(3).integers(80, 160, (240, 320, 3), dtype=np.uint8)
    alignment = square(150, 110, 80, 12)
    result, _ = restored(grain, [alignment], lambda face: np.full_like(face, 120))

    assert (result[covered(alignment, grain) == 1] == 120).all()


@settings(max_examples=6)
@given(
    places=st.permutations([(110, 100, 90, 10), (170, 120, 120, -15), (150, 150, 60, 40)]),
)
def test_the_order_of_faces_does_not_matter(
    places: list[tuple[float, float, float, float]],
) -> None:
    """Overlapping faces share their pixels by nearness; large and small ones mix."""
    rng = np.random.default_rng(0)
    paint = {place: rng.integers(98, 158, 3, dtype=np.uint8) for place in places}

    def laid(order: Sequence[tuple[float, float, float, float]]) -> Array:
        photograph = np.full((240, 320, 3), 128, np.uint8)
        patches = [
            Patch(
                square(*place),
                np.full((SIZE, SIZE, 3), paint[place]),
                np.full((SIZE, SIZE, 3), 128, np.uint8),
            )
            for place in order
        ]
        return pasted(photograph, patches)[0].astype(int)

    assert np.abs(laid(places) - laid(sorted(places))).max() <= 2  # rounded thrice


def test_a_face_belongs_to_its_own_crop() -> None:
    """Of two faces cheek to cheek each shows in its middle what its own crop became."""
    one, other = square(110, 120, 90, 0), square(146, 120, 90, 0)
    photograph = np.full((240, 320, 1), 128, np.uint8)
    made = [
        Patch(alignment, np.full((SIZE, SIZE, 1), level, np.uint8), np.full((SIZE, SIZE, 1), 128))
        for alignment, level in ((one, 10), (other, 250))
    ]
    made = [Patch(p.alignment, p.restored, p.crop.astype(np.uint8)) for p in made]
    result, _ = pasted(photograph, made)

    assert result[120, 110] == 10
    assert result[120, 146] == 250
    assert (result[110:130, 105:116] <= 12).all()
    assert (result[110:130, 141:152] >= 248).all()
    assert result[120, 128] in range(120, 141)  # half of each in the middle between them


@settings(max_examples=15)
@given(alignments=st.lists(squares, min_size=1, max_size=3))
def test_layers_over_the_photograph_are_the_result(alignments: list[Alignment]) -> None:
    """An editor that lays the layers over the input in their order has the output, to the level."""
    result, layers = restored(PHOTOGRAPH, alignments, lambda face: 255 - face // 2)
    canvas = Image.fromarray(PHOTOGRAPH).convert("RGBA")
    for made in layers:
        if made.alpha.size:
            over = np.dstack([made.colours, made.alpha])
            canvas.alpha_composite(Image.fromarray(over), (made.x, made.y))

    assert np.array_equal(np.asarray(canvas.convert("RGB")), result)


def test_grey_and_sixteen_bits_go_the_same_way() -> None:
    """One channel gives what three equal ones give; 16 bits what 8 give, but finer."""
    alignment = square(160, 120, 70, 25)
    face = crop(PHOTOGRAPH, alignment)
    colour, _ = pasted(PHOTOGRAPH, [Patch(alignment, 255 - face, face)])
    green = np.ascontiguousarray(PHOTOGRAPH[..., 1:2])
    grey, _ = pasted(green, [Patch(alignment, 255 - face[..., 1:2], face[..., 1:2])])
    wide, _ = pasted(
        PHOTOGRAPH.astype(np.uint16) * 257,
        [Patch(alignment, (255 - face).astype(np.uint16) * 257, face.astype(np.uint16) * 257)],
    )

    assert np.array_equal(grey[..., 0], colour[..., 1])
    assert np.abs(wide / 257 - colour).max() <= 1.5  # a level, its cover, and a level


def test_a_strip_at_a_time_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are computed at a time, the levels are the same."""
    alignments = [square(100, 100, 90, 10), square(160, 120, 140, -30)]
    whole, _ = restored(PHOTOGRAPH, alignments, lambda face: 255 - face)
    monkeypatch.setattr("models.faces.paste.STRIP", 500)
    parts, _ = restored(PHOTOGRAPH, alignments, lambda face: 255 - face)

    assert np.array_equal(whole, parts)


def test_a_face_that_does_not_fit_is_refused() -> None:
    """Another size, depth or number of channels is named, with what it has to be."""
    face = np.zeros((SIZE, SIZE, 3), np.uint8)
    for wrong in (face[:-1], face.astype(np.uint16), face[..., :1]):
        with pytest.raises(ValueError, match=r"it has to be uint8 \[96, 96, 3\]"):
            layer(PHOTOGRAPH, [Patch(square(100, 100, 50, 0), wrong, face)], 0)
