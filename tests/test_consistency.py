"""A true face agrees with its degraded picture; another picture, colour or place does not."""

from functools import cache

import cv2
import numpy as np
import pytest
import skimage.data

from datasets.decoding import Pixels
from datasets.degradation.parameters import degradation_preset
from datasets.degradation.reference import degrade, draw_parameters
from models.consistency import THRESHOLD, consistency, scale

SIDE = 128
DRAWS = 12


@cache
def true(name: str) -> Pixels:
    """Return a picture that comes with scikit-image, its centre square."""
    pixels = getattr(skimage.data, name)()
    pixels = pixels[:256, 96:352] if name == "astronaut" else pixels
    side = min(pixels.shape[:2])
    left = (pixels.shape[1] - side) // 2
    square = pixels[:side, left : left + side]
    return np.asarray(cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


@cache
def degraded(name: str) -> tuple[tuple[Pixels, Pixels], ...]:
    """Return pairs of HQ and LQ of a picture."""
    config = degradation_preset("pmrf-128")
    parameters = [draw_parameters(config, seed=0, key=name, draw=draw) for draw in range(DRAWS)]
    pairs = [degrade(true(name), one) for one in parameters]
    return tuple((levels(pair.hq), levels(pair.lq)) for pair in pairs)


def levels(image: np.ndarray) -> Pixels:
    """[0, 1] => uint8."""
    return np.asarray(np.rint(image * 255), np.uint8)


def shrunk(pixels: Pixels, factor: int) -> Pixels:
    """Average ``factor`` x ``factor`` pixels and enlarge them again."""
    small = cv2.resize(pixels, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR))


def disagreements(pairs: list[tuple[Pixels, Pixels]]) -> np.ndarray:
    """Return a number for each pair of a restored face and LQ."""
    return np.array([consistency(restored, lq).disagreement for restored, lq in pairs])


def test_a_true_picture_agrees_with_what_a_degradation_made_of_it() -> None:
    """By the paper's degradation; no draw here is above the threshold."""
    found = disagreements([*degraded("astronaut"), *degraded("chelsea")])

    assert found.max() < THRESHOLD
    assert not consistency(*degraded("astronaut")[0]).is_doubtful


def test_another_picture_is_doubtful() -> None:
    """However little LQ knows."""
    pairs = [(true("chelsea"), lq) for _, lq in degraded("astronaut")]

    assert disagreements(pairs).min() > 2 * THRESHOLD
    assert consistency(*pairs[0]).is_doubtful


def test_a_colour_shift_is_seen() -> None:
    """Red up and blue down by eight levels, which no low pass can remove."""
    shift = np.array([8, 0, -8])
    pairs = [
        (np.asarray((hq + shift).clip(0, 255), np.uint8), lq) for hq, lq in degraded("astronaut")
    ]

    assert disagreements(pairs).min() > THRESHOLD


def test_a_shift_of_one_colour_is_measured_in_levels() -> None:
    """A constant passes every low pass: the number is its root mean square over the channels."""
    lq = true("astronaut").clip(20, 230)
    found = consistency(np.asarray(lq + np.array([9, 0, 0]), np.uint8), lq).disagreement

    assert found == pytest.approx(9 / 3**0.5)


def test_what_lq_does_not_know_is_not_held_against_a_face() -> None:
    """Noise of twenty levels is nearly gone after the low pass, in either of the two."""
    hq = true("astronaut")
    noise = np.random.default_rng(0).normal(0, 20, hq.shape)
    noisy = np.asarray(np.rint(hq + noise).clip(0, 255), np.uint8)

    assert np.abs(noisy.astype(float) - hq).mean() > 12
    assert consistency(hq, noisy).disagreement < THRESHOLD
    assert consistency(shrunk(hq, 8), shrunk(hq, 2)).disagreement < THRESHOLD


def test_content_in_another_place_is_seen() -> None:
    """A sharp LQ of the same picture, six pixels lower."""
    hq = true("astronaut")
    lower = np.concatenate([hq[:1].repeat(6, axis=0), hq[:-6]])

    assert consistency(lower, shrunk(hq, 2)).is_doubtful


@pytest.mark.parametrize("name", ["astronaut", "chelsea"])
def test_the_scale_grows_with_what_was_lost(name: str) -> None:
    """From about one pixel of a sharp picture on."""
    scales = [scale(shrunk(true(name), factor)) for factor in (1, 4, 8)]

    assert 1 <= scales[0] <= 2
    assert scales[0] < scales[1] < scales[2]


def test_the_scale_is_in_pixels() -> None:
    """An enlarged picture knows as much as before, in pixels twice as large."""
    lq = shrunk(true("astronaut"), 8)
    enlarged = np.asarray(cv2.resize(lq, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR))

    assert scale(enlarged) == pytest.approx(2 * scale(lq))


def test_equal_and_flat_pictures_have_numbers() -> None:
    """Nothing is divided by the power of a picture of one colour."""
    flat = np.full((16, 16, 3), 7, np.uint8)

    assert consistency(flat, flat).disagreement == 0
    assert consistency(flat + np.uint8(2), flat).disagreement == pytest.approx(2)
    assert scale(flat) >= 1


def test_what_cannot_be_compared_is_refused() -> None:
    """By what was given and what is wanted."""
    square = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(TypeError, match="restored is float32: give levels"):
        consistency(square.astype(np.float32), square)
    with pytest.raises(ValueError, match=r"lq \[32, 31, 3\]: give one shape"):
        consistency(square, square[:, :31])
    with pytest.raises(ValueError, match="at least 16"):
        consistency(square[:8, :8], square[:8, :8])
