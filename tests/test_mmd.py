"""The maximum mean discrepancy: published anchors, the definition, what bias means."""

import math

import pytest
import torch
from torch import Tensor

from models.metrics.catalog import METRICS
from models.metrics.mmd import NEAR, KernelSet, mmd, unbiased_mmd
from tests.test_neighborhood import LargestTensor


def gaussian(seed: int, scale: float, n: int = 3000, d: int = 1024) -> Tensor:
    """Draw N(0, scale^2 I)."""
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("scale", "measured"), [(0.5, 0.626), (0.7, 0.662), (1.0, 0.6666)])
def test_the_diagonal_alone_scores_2000_over_n(scale: float, measured: float) -> None:
    """Two independent sets of 3,000 of one distribution: most of the tables' 0.72 to 1.16.

    The expectation is 2000 / N (1 - E k), with E k = (1 + 2 s^2 / sigma^2)^(-D / 2) for Gaussians;
    single draws stray from it by about 0.011 E k / 0.078.
    """
    across = (1 + 2 * scale**2 / 100) ** -512
    expected, stray = 2000 / 3000 * (1 - across), 0.011 * across / 0.078
    found = mmd(gaussian(0, scale), gaussian(1, scale))

    assert found == pytest.approx(expected, abs=3 * stray + 1e-4)
    assert measured == pytest.approx(expected, abs=3 * stray + 1e-4)


def test_it_is_the_mean_over_pairs() -> None:
    """A double loop over the definition gives the same number, biased and unbiased."""
    x, y = gaussian(0, 3.0, 5, 4).double(), gaussian(1, 4.0, 7, 4).double()

    def k(a: Tensor, b: Tensor) -> float:
        return math.exp(-float((a - b).square().sum()) / 200)

    def mean(a: Tensor, b: Tensor, *, diagonal: bool = True) -> float:
        pairs = [k(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if diagonal or i != j]
        return sum(pairs) / len(pairs)

    biased = mean(x, x) + mean(y, y) - 2 * mean(x, y)
    unbiased = mean(x, x, diagonal=False) + mean(y, y, diagonal=False) - 2 * mean(x, y)

    assert mmd(x, y) == pytest.approx(1000 * biased, rel=1e-9)
    assert mmd(x, y, unbiased=True) == pytest.approx(1000 * unbiased, rel=1e-9)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("block", [1, 7, 64, 100, 1000])
def test_blocks_change_nothing(block: int, unbiased: bool) -> None:
    """Whatever the block, the result is that of the kernel of all pairs at once."""
    x, y = gaussian(0, 1.0, 100, 16), gaussian(1, 1.5, 75, 16)

    def mean(a: Tensor, b: Tensor) -> float:
        kernel = torch.exp(-torch.cdist(a.double(), b.double()).square() / 200)
        if unbiased and a is b:
            return float(kernel.sum() - len(a)) / (len(a) * (len(a) - 1))
        return float(kernel.mean())

    expected = mean(x, x) + mean(y, y) - 2 * mean(x, y)

    assert mmd(x, y, unbiased=unbiased, block=block) / 1000 == pytest.approx(expected, abs=1e-12)


def test_memory_does_not_grow_with_the_sets() -> None:
    """No tensor is larger than a block of pairs, or the features of a set."""
    with LargestTensor() as largest:
        mmd(torch.ones(500, 16), torch.ones(300, 16), block=32)

    assert largest.elements <= max(32 * 32, 500 * 16)


@pytest.mark.parametrize("unbiased", [False, True])
def test_large_sets_are_computed_in_float32_to_the_digits_that_are_told(
    monkeypatch: pytest.MonkeyPatch, unbiased: bool
) -> None:
    """Far from zero and as far apart as DINOv2's features, they give float64's result."""
    x, y = 20 + gaussian(0, 1.0, 300, 1024), 20.05 + gaussian(1, 1.0, 200, 1024)
    exact = mmd(x, y, unbiased=unbiased)
    monkeypatch.setattr("models.metrics.mmd.SMALL", 0)
    fast = mmd(x, y, unbiased=unbiased)

    assert fast != exact
    assert fast == pytest.approx(exact, abs=1e-5)


def test_a_kernel_in_float32_has_the_error_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of near pairs just within the limit, where the squares cancel most."""
    monkeypatch.setattr("models.metrics.mmd.SMALL", 0)
    there = torch.nn.functional.normalize(gaussian(0, 1.0, 400, 256)) * (NEAR * 10 - 6)
    pairs = torch.stack([there, there + gaussian(1, 0.3, 400, 256)], dim=1)

    for one in pairs[:50]:
        both = torch.cat([one, -one])  # their mean is zero, so that they are all at the limit
        fast, exact = (KernelSet.of(some).within for some in (both, both.double()))
        assert fast == pytest.approx(exact, rel=2e-4)


def test_features_too_far_for_float32_are_computed_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Squares of thousands would leave nothing of distances of 1."""
    x, y = gaussian(0, 1.0, 40, 64), gaussian(1, 1.5, 40, 64)
    x[0], y[0] = 5000, -5000
    exact = mmd(x, y)
    monkeypatch.setattr("models.metrics.mmd.SMALL", 0)

    assert mmd(x, y) == exact


@pytest.mark.parametrize("name", ["mmd_dinov2", "mmd_dinov2_unbiased"])
def test_a_reference_is_added_up_once_for_all_sets(name: str) -> None:
    """What the catalogue makes of a reference gives the same number as its features."""
    x, y = gaussian(0, 2.0, 30, 16), gaussian(1, 2.5, 20, 16)
    distance, reference = METRICS[name].distance_function(), METRICS[name].prepared(y)

    assert isinstance(reference, KernelSet)
    assert distance(x, reference) == distance(x, y)


def test_unbiased_is_zero_for_one_distribution_and_grows_with_a_shift() -> None:
    """Without the diagonals, equal distributions score nothing."""
    x, y = gaussian(0, 2.0, 800, 16), gaussian(1, 2.0, 800, 16)
    near, far = unbiased_mmd(x, y), unbiased_mmd(x, y + 3)

    assert abs(near) < 1
    assert far > 100


def test_features_that_do_not_fit_are_refused() -> None:
    """The message names both shapes."""
    with pytest.raises(ValueError, match=r"\[3, 4\].*\[3, 5\]"):
        mmd(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="block=0"):
        mmd(torch.zeros(3, 4), torch.zeros(3, 4), block=0)
