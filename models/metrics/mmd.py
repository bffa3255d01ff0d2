"""Distances between two sets of images, as distributions of their features."""

import torch
from torch import Tensor

SCALE = 1000.0  # the tables print a thousand times the squared MMD


def mmd(x: Tensor, y: Tensor, sigma: float = 10.0, *, unbiased: bool = False) -> float:
    """Squared maximum mean discrepancy under an RBF kernel, times 1000 (CMMD, arXiv 2401.09603).

    k(a, b) = exp(-|a - b|^2 / (2 sigma^2)). The paper's MMD_DINOv2 is the biased estimator on
    DINOv2 ViT-L/14 features: it counts k(a, a) = 1, so two independent sets of one distribution,
    far apart under the kernel, score 2000 / N instead of 0. The unbiased one leaves that out.

    Args:
        x: features of one set, [N, D].
        y: features of the other, [M, D].
        sigma: bandwidth of the kernel, in the units of the features.
        unbiased: leave out the diagonals; may be slightly negative.

    Raises:
        ValueError: features that do not fit together, or fewer than two of them.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"features {list(x.shape)} and {list(y.shape)}: give two sets [N, D] and [M, D] of the "
            "same D, at least two each"
        )
    x, y = x.double(), y.double()
    within = [_within(features, sigma, unbiased=unbiased) for features in (x, y)]
    return SCALE * (sum(within) - 2 * float(_kernel(x, y, sigma).mean()))


def _within(x: Tensor, sigma: float, *, unbiased: bool) -> float:
    kernel, n = _kernel(x, x, sigma), len(x)
    total = float(kernel.sum())
    return (total - n) / (n * (n - 1)) if unbiased else total / n**2


def _kernel(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Evaluate k for all pairs, [N, M]."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return torch.exp(-squares.clamp(min=0) / (2 * sigma**2))
