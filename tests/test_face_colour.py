"""A restored face may have the input's colours, and keeps its own texture."""

from typing import Any, get_args

import numpy as np
import pytest
from scipy import ndimage
from skimage import data
from skimage.color import lab2rgb, rgb2lab

from models.faces.colour import Colour, colour_difference, with_colours_of

Array = np.ndarray[Any, Any]
FACE: Array = data.astronaut()[10:170, 140:300].copy()
CAST = np.array([18, -6, -14])


def texture(pixels: Array) -> Array:
    """Return what is finer than ten pixels."""
    values = pixels.astype(float)
    return values - ndimage.gaussian_filter(values, (3, 3, 0), mode="mirror")


def within(values: Array) -> Array:
    """Return a picture of 8 bits, none of whose levels is clipped."""
    return np.rint(values).clip(0, 255).astype(np.uint8)


INPUT = within(40 + FACE * 0.6)


@pytest.mark.parametrize("rule", ["mean", "low-pass"])
def test_a_cast_is_removed_and_texture_kept(rule: Colour) -> None:
    """All pixels too warm become as the input was; what is fine stays to a level of rounding."""
    restored = within(INPUT + CAST)
    given = with_colours_of(restored, INPUT, rule)

    assert colour_difference(restored, INPUT) > 8
    assert colour_difference(given, INPUT) < 0.2
    assert np.abs(given.astype(int) - INPUT).max() <= 1
    assert np.abs(texture(given) - texture(restored)).max() <= 1


def test_a_cast_on_one_side_needs_the_low_pass() -> None:
    """A shadow that the restorer drew is taken away by what is smooth, not by the mean."""
    shadow = np.linspace(-30, 30, INPUT.shape[1])[None, :, None]
    restored = within(INPUT + shadow)
    by_mean, by_low_pass = (with_colours_of(restored, INPUT, rule) for rule in ("mean", "low-pass"))
    before = colour_difference(restored, INPUT)

    assert colour_difference(by_mean, INPUT) > 0.8 * before
    assert colour_difference(by_low_pass, INPUT) < 0.2 * before
    assert np.abs(texture(by_low_pass) - texture(restored)).max() <= 1.5


def test_off_changes_nothing() -> None:
    """The restored face is the restorer's."""
    assert np.array_equal(with_colours_of(within(INPUT + CAST), INPUT, "off"), INPUT + CAST)


def test_detail_that_was_restored_stays() -> None:
    """A sharp face restored from a blurred one of the same colours keeps its sharpness."""
    blurred = within(ndimage.gaussian_filter(INPUT.astype(float), (2, 2, 0), mode="mirror"))
    for rule in get_args(Colour):
        given = with_colours_of(INPUT, blurred, rule)
        assert np.abs(texture(given) - texture(INPUT)).max() <= 1.5, rule


def test_the_difference_is_that_of_cielab() -> None:
    """Two plain colours five units of L* apart are five apart; noise counts for little."""
    lab = np.array([60.0, 10.0, 15.0])
    one = np.tile(within(255 * lab2rgb(lab)), (64, 64, 1))
    other = np.tile(within(255 * lab2rgb(np.add(lab, (5, 0, 0)))), (64, 64, 1))
    noise = np.random.default_rng(0).normal(0, 20, INPUT.shape)
    raw = np.linalg.norm(rgb2lab(within(INPUT + noise)) - rgb2lab(INPUT), axis=2).mean()

    assert colour_difference(one, other) == pytest.approx(5, abs=0.3)
    assert colour_difference(INPUT, INPUT) == 0
    assert colour_difference(within(INPUT + noise), INPUT) < 0.1 * raw
