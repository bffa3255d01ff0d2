"""How far a face's colours have shifted, in units of CIELAB: 0 for equal ones, lower is better.

MS-SSIM compares the luma alone, and a distance of features forgives a tint, so the tables' columns
hardly see what people notice first: a face that has become paler or redder. Here both images are
blurred until texture is gone (a Gaussian, sigma 8 for 512 pixels), and the mean difference of their
colours is taken. About 2.3 is a just noticeable difference of two plain patches (Mahy et al. 1994).

Two choices. The encoded sRGB values are blurred, not linear light, because restorers average those:
a posterior mean, blurred but of the right colours, shall have none of the blame. The difference is
CIE76, the Euclidean distance in L*, a*, b*: unlike CIE94 it is symmetric, unlike CIEDE2000 it has
no discontinuities, and what those two mend, saturated colours, faces hardly have.
"""

import torch
from torch import Tensor

from models.metrics.catalog import Judge
from models.metrics.fidelity import check_pair

SIGMA = 8 / 512  # of the shorter side
TRUNCATE = 4  # standard deviations at which the Gaussian ends
# Linear sRGB to CIE XYZ under D65 (IEC 61966-2-1, six decimals), and its white point.
XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)
# L* = 116 f(Y) - 16, a* = 500 (f(X) - f(Y)), b* = 200 (f(Y) - f(Z)).
LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))


def colour_difference(images: Tensor, reference: Tensor) -> Tensor:
    """Average the CIE76 difference of two blurred images over their places.

    Args:
        images: uint8 [B, 3, H, W].
        reference: of the same shape.

    Returns:
        float64 [B], from 0; black and white are 100 apart.

    Raises:
        TypeError: not uint8.
        ValueError: different shapes.
    """
    check_pair(images, reference)
    mine, theirs = (srgb_to_lab(blur(x.double() / 255)) for x in (images, reference))
    return (mine - theirs).square().sum(dim=1).sqrt().mean(dim=(1, 2))


def srgb_to_lab(images: Tensor) -> Tensor:
    """Convert sRGB [B, 3, H, W] in [0, 1] to CIELAB under D65: L* in [0, 100], a*, b*."""
    linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055) ** 2.4, images / 12.92)
    white = images.new_tensor(WHITE)[:, None, None]
    xyz = _mix(XYZ, linear) / white
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0) ** (1 / 3), 7.787 * xyz + 16 / 116)
    return _mix(LAB, f) - images.new_tensor((16.0, 0.0, 0.0))[:, None, None]


def _mix(matrix: tuple[tuple[float, ...], ...], images: Tensor) -> Tensor:
    """Multiply the channels of every pixel by a matrix [3, 3]."""
    return torch.einsum("dc,bchw->bdhw", images.new_tensor(matrix), images)


def blur(images: Tensor) -> Tensor:
    """Blur [B, C, H, W] by a Gaussian of `SIGMA` times the shorter side."""
    height, width = images.shape[2:]
    sigma = SIGMA * min(height, width)
    rows, columns = (_gaussian(side, sigma).to(images) for side in (height, width))
    return rows @ images @ columns.T


def _gaussian(side: int, sigma: float) -> Tensor:
    """Return the matrix [side, side] that blurs a row; beyond its ends the row is mirrored."""
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-offsets.double().square() / (2 * sigma**2))
    period = max(2 * (side - 1), 1)  # the end pixel itself is not repeated
    places = (torch.arange(side)[:, None] + offsets) % period
    places = torch.minimum(places, period - places) if side > 1 else places
    matrix = torch.zeros(side, side, dtype=torch.float64)
    return matrix.scatter_add_(1, places, (weights / weights.sum()).expand(side, -1))


def load(*_: object) -> Judge:
    """Return `colour_difference` for the catalogue: a formula, without variants or weights."""
    return Judge(colour_difference)
