"""The spread of samples is their standard deviation, and its picture can be read back."""

import numpy as np
import pytest

from models.spread import picture, spread


def test_it_is_the_standard_deviation_averaged_over_the_channels() -> None:
    """With K - 1; of samples that come one after the other."""
    samples = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), np.uint8)

    expected = samples.astype(np.float64).std(axis=0, ddof=1).mean(axis=2)
    assert spread(iter(samples)) == pytest.approx(expected)


def test_equal_samples_have_none() -> None:
    """Exactly zero, however many."""
    sample = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)

    assert (spread([sample] * 9) == 0).all()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_samples_are_refused(count: int) -> None:
    """One restoration says nothing of the others."""
    with pytest.raises(ValueError, match=f"{count} sample has no spread: give at least two"):
        spread([np.zeros((2, 2, 3), np.uint8)] * count)


def test_the_picture_says_the_spread() -> None:
    """The sum of its channels is fifty times the spread; it rises from black to white."""
    values = np.array([[0.0, 0.5, 5.1, 7.0], [10.2, 12.0, 15.3, 80.0]])
    drawn = picture(values)

    assert drawn.astype(int).sum(axis=2) / 50 == pytest.approx(values.clip(0, 15.3))
    assert drawn[0, 2].tolist() == [255, 0, 0]
    assert drawn[1, 3].tolist() == [255, 255, 255]
