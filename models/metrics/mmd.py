"""Distances between two sets of images, as distributions of their features."""

from collections.abc import Iterable, Sequence
from itertools import combinations, product

import torch
from torch import Tensor

SCALE = 1000.0  # the tables print a thousand times the squared MMD
BLOCK = 2048  # features of a set at a time; the result depends on it by rounding alone


def mmd(
    x: Tensor, y: Tensor, sigma: float = 10.0, *, unbiased: bool = False, block: int = BLOCK
) -> float:
    """Squared maximum mean discrepancy under an RBF kernel, times 1000 (CMMD, arXiv 2401.09603).

    k(a, b) = exp(-|a - b|^2 / (2 sigma^2)). The paper's MMD_DINOv2 is the biased estimator on
    DINOv2 ViT-L/14 features: it counts k(a, a) = 1, so two independent sets of one distribution,
    far apart under the kernel, score 2000 / N instead of 0. The unbiased one leaves that out.

    It is computed in float64, ``block`` x ``block`` pairs at a time. Beside the features that takes
    about 8 (3 block^2 + 4 block D) bytes and a matrix product's own buffers, 0.25 GB at the peak
    for D = 1024, whatever N and M are. The kernel of all pairs of 70,000 would be 39 GB.

    Args:
        x: features of one set, [N, D].
        y: features of the other, [M, D].
        sigma: bandwidth of the kernel, in the units of the features.
        unbiased: leave out the diagonals; may be slightly negative.
        block: features of each set whose pairs are held at a time.

    Raises:
        ValueError: features that do not fit together, or fewer than two of them; no block.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"features {list(x.shape)} and {list(y.shape)}: give two sets [N, D] and [M, D] of the "
            "same D, at least two each"
        )
    if block < 1:
        raise ValueError(f"block={block}: give at least 1")
    blocks = torch.split(x, block), torch.split(y, block)
    across = _total(product(*blocks), sigma) / (len(x) * len(y))
    within = [_within(some, sigma, unbiased=unbiased) for some in blocks]
    return SCALE * (sum(within) - 2 * across)


def unbiased_mmd(x: Tensor, y: Tensor) -> float:
    """Leave the diagonals out; see `mmd`."""
    return mmd(x, y, unbiased=True)


def _within(blocks: Sequence[Tensor], sigma: float, *, unbiased: bool) -> float:
    """Average the kernel over the pairs of one set; blocks off the diagonal count twice."""
    n = sum(map(len, blocks))
    total = _total(((a, a) for a in blocks), sigma) + 2 * _total(combinations(blocks, 2), sigma)
    return (total - n) / (n * (n - 1)) if unbiased else total / n**2


def _total(pairs: Iterable[tuple[Tensor, Tensor]], sigma: float) -> float:
    """Add the kernel up over pairs of blocks."""
    return sum(float(_kernel(a, b, sigma).sum()) for a, b in pairs)


def _kernel(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Evaluate k for all pairs in float64, [N, M]."""
    x, y = x.double(), y.double()
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return squares.clamp_(min=0).div_(-2 * sigma**2).exp_()
