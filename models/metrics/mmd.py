"""Distances between two sets of images, as distributions of their features."""

from collections.abc import Iterable, Sequence
from itertools import chain, combinations, product
from typing import NamedTuple, Self

import torch
from torch import Tensor

SCALE = 1000.0  # the tables print a thousand times the squared MMD
SIGMA = 10.0
BLOCK = 1024  # features of a set at a time; their pairs stay in a processor's cache
SMALL = 8192  # features of both sets together, up to which float64 takes seconds
NEAR = 16.0  # bandwidths from the mean, up to which float32 has the accuracy that `mmd` states


class KernelSet(NamedTuple):
    """A set whose pairs among themselves are added up already, once for all that it is compared to.

    Those of 70,000 features are a half of the work, and almost all of it beside a small test set.
    """

    features: Tensor
    """[N, D]."""
    within: float
    """Sum of the kernel over the N (N - 1) ordered pairs of different features."""

    @classmethod
    def of(cls, features: Tensor, sigma: float = SIGMA, block: int = BLOCK) -> Self:
        """Add up the pairs; see `mmd` for the arguments.

        Raises:
            ValueError: not two dimensions, fewer than two features, or no block.
        """
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features {list(features.shape)}: give [N, D], N at least 2")
        if block < 1:
            raise ValueError(f"block={block}: give at least 1")
        (blocks,) = _scaled([features], sigma, block)
        on_diagonal = sum(_total(_kernel(some, some).fill_diagonal_(0)) for some in blocks)
        return cls(features, on_diagonal + 2 * _sum(combinations(blocks, 2)))


def mmd(
    x: Tensor,
    y: Tensor | KernelSet,
    sigma: float = SIGMA,
    *,
    unbiased: bool = False,
    block: int = BLOCK,
) -> float:
    """Squared maximum mean discrepancy under an RBF kernel, times 1000 (CMMD, arXiv 2401.09603).

    k(a, b) = exp(-|a - b|^2 / (2 sigma^2)). The paper's MMD_DINOv2 is the biased estimator on
    DINOv2 ViT-L/14 features: it counts k(a, a) = 1, so two independent sets of one distribution,
    far apart under the kernel, score 2000 / N instead of 0. The unbiased one leaves that out.

    Small sets, features in float64, and features further than 16 sigma from their mean are computed
    in float64, others in float32 with the sums in float64. There the error of a k is below 2e-4 of
    it, and below 2e-5 within 6 sigma, where DINOv2's features lie. It has either sign and averages
    out: of 2 x 8,192 synthetic features with DINOv2's norms and distances it leaves 1e-10 in a
    result of 0.25. ``block`` x ``block`` pairs are held at a time, beside a copy of the features;
    the kernel of all pairs of 70,000 would be 39 GB.

    Args:
        x: features of one set, [N, D].
        y: features of the other, [M, D], or those with their own pairs, of the same ``sigma``.
        sigma: bandwidth of the kernel, in the units of the features.
        unbiased: leave out the diagonals; may be slightly negative.
        block: features of each set whose pairs are held at a time.

    Raises:
        ValueError: features that do not fit together, or fewer than two of them; no block.
    """
    other = y.features if isinstance(y, KernelSet) else y
    if x.ndim != 2 or other.ndim != 2 or x.shape[1] != other.shape[1]:
        raise ValueError(
            f"features {list(x.shape)} and {list(other.shape)}: give two sets [N, D] and [M, D] of "
            "the same D, at least two each"
        )
    mine = KernelSet.of(x, sigma, block)
    theirs = y if isinstance(y, KernelSet) else KernelSet.of(y, sigma, block)
    within = sum(_mean_within(some, unbiased=unbiased) for some in (mine, theirs))
    first, second = _scaled([x, other], sigma, block)
    across = _sum(product(first, second)) / (len(x) * len(other))
    return SCALE * (within - 2 * across)


def unbiased_mmd(x: Tensor, y: Tensor | KernelSet) -> float:
    """Leave the diagonals out; see `mmd`."""
    return mmd(x, y, unbiased=True)


def _mean_within(some: KernelSet, *, unbiased: bool) -> float:
    n = len(some.features)
    return some.within / (n * (n - 1)) if unbiased else (some.within + n) / n**2


class _Block(NamedTuple):
    """Features from which one vector was taken, over sigma, and minus half their squares [n, 1]."""

    features: Tensor
    squares: Tensor


def _scaled(sets: Sequence[Tensor], sigma: float, block: int) -> list[list[_Block]]:
    """Cut sets into blocks of such features, in the dtype in which their kernel is computed."""
    centre = sets[-1].mean(dim=0, dtype=torch.float64)
    parts = [torch.split(some, block) for some in sets]
    radius = max(float((part - centre).norm(dim=1).max()) for part in chain(*parts))
    is_small = sum(map(len, sets)) <= SMALL
    is_fast = sets[0].dtype != torch.float64 and not is_small and radius <= NEAR * sigma
    dtype = torch.float32 if is_fast else torch.float64

    def scaled(part: Tensor) -> _Block:
        features = (part.to(dtype) - centre.to(dtype)) / sigma
        return _Block(features, features.square().sum(dim=1, keepdim=True) / -2)

    return [[scaled(part) for part in some] for some in parts]


def _kernel(a: _Block, b: _Block) -> Tensor:
    """Evaluate k for all pairs [n, m], by the product that the squares of a distance contain."""
    return (a.squares + b.squares.T).addmm_(a.features, b.features.T).exp_()


def _sum(pairs: Iterable[tuple[_Block, _Block]]) -> float:
    """Add the kernel up over pairs of blocks."""
    return sum(_total(_kernel(a, b)) for a, b in pairs)


def _total(kernel: Tensor) -> float:
    return float(kernel.sum(dim=1).double().sum())
