"""Intervals of the bootstrap: they cover, they pair methods, they leave out what is undefined."""

import numpy as np
import pytest

from pipelines.evaluate import bootstrap
from pipelines.evaluate.bootstrap import (
    interval,
    mean_of_defined,
    recentred,
    resampled_means,
    resampled_rows,
)

NAN = float("nan")
RNG = np.random.default_rng(5)


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    """Of 400 test sets of 50 normal values, about 95 % have the true mean in their interval."""
    sets = RNG.normal(3, 2, (50, 400))
    ends = [interval(column) for column in resampled_means(sets, 500).T]

    covered = sum(low <= 3 <= high for low, high in ends)

    assert 0.92 * 400 <= covered <= 0.97 * 400


def test_an_interval_is_as_wide_as_the_normal_one() -> None:
    """For the mean of many values it is that of the central limit theorem."""
    values = RNG.normal(0, 1, 1000)
    low, high = interval(resampled_means(values[:, None], 2000)[:, 0])

    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(1000), rel=0.08)


def test_methods_are_resampled_alike() -> None:
    """A method that is better by a constant on every image is better by that in every resample."""
    one = RNG.normal(0, 10, 40)
    means = resampled_means(np.stack([one + 0.25, one], axis=1), 300)

    assert interval(means[:, 0] - means[:, 1]) == pytest.approx((0.25, 0.25), abs=1e-12)


def test_columns_alone_and_together_have_the_same_resamples() -> None:
    """A further column, of another method or metric, changes no interval."""
    columns = RNG.normal(0, 1, (30, 3))
    together = resampled_means(columns, 50)

    for number in range(3):
        alone = resampled_means(columns[:, [number]], 50)[:, 0]
        assert alone == pytest.approx(together[:, number], abs=1e-12)


def test_undefined_values_count_in_no_mean() -> None:
    """NaN is left out of the resamples that hold it, and of no other column."""
    columns = np.array([[1.0, NAN], [NAN, NAN], [1.0, 2.0]])
    means = resampled_means(columns, 200)

    assert {*means[~np.isnan(means)].tolist()} == {1.0, 2.0}
    assert np.isnan(means).any()  # a resample without the one image that is defined
    assert interval(means[:, 1]) == (2.0, 2.0)


def test_nothing_defined_has_no_mean_and_no_interval() -> None:
    """NaN comes out, and no warning."""
    means = resampled_means(np.full((4, 1), NAN), 10)

    assert np.isnan(mean_of_defined(np.full(4, NAN)))
    assert np.isnan(interval(means[:, 0])).all()


def test_whole_sets_are_resampled_as_images_are() -> None:
    """The rows that a distance of sets is given are those that the means are of."""
    values = RNG.normal(0, 1, 20)
    rows = resampled_rows(20, 30, lambda rows: float(values[rows].mean()))

    assert rows == pytest.approx(resampled_means(values[:, None], 30)[:, 0], abs=1e-12)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resamples that do not fit into memory at once are the same."""
    values = RNG.normal(0, 1, (20, 2))
    whole = resampled_means(values, 25)
    monkeypatch.setattr(bootstrap, "BLOCK", 60)  # three resamples

    assert resampled_means(values, 25) == pytest.approx(whole, abs=1e-12)


def test_another_seed_has_other_resamples() -> None:
    """And the same seed the same."""
    values = RNG.normal(0, 1, (20, 1))

    assert (resampled_means(values, 5) == resampled_means(values, 5)).all()
    assert (resampled_means(values, 5) != resampled_means(values, 5, seed=1)).any()


def test_recentred_values_have_the_mean_of_the_whole_set() -> None:
    """Their spread is what it was; where there are none, none come out."""
    moved = recentred(np.array([11.0, 12.0, 16.0]), 10.0)

    assert moved.mean() == pytest.approx(10)
    assert moved - moved[0] == pytest.approx([0, 1, 5])
    assert recentred(np.array([]), 10.0).shape == (0,)
