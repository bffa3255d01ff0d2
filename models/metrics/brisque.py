"""BRISQUE, the no-reference quality metric that needs no download.

Mittal, Moorthy, Bovik: No-Reference Image Quality Assessment in the Spatial Domain (IEEE TIP
2012). Natural-scene statistics of locally normalised luminance, at two scales, are fitted by
generalised Gaussians; a support vector regression maps the 36 parameters to the opinion scores of
the LIVE database. Its support vectors and feature ranges were published with the Python package
brisque 0.2.0 (see brisque.md), whose conventions are followed where the paper leaves a choice, so
that scores can be compared: grey by Rec. 709 in [0, 1], C = 1/255, zeros beyond the border. One of
them is not the paper's: the second scale is bicubic without the low-pass filter (with it, scores
move by 4.4 points in the standard deviation and keep their order, Spearman 0.98, over 411 crops of
real photographs).

Where a region is flat, the sign of the normalised luminance is left to rounding, and signs are
counted: as the package does it, noise of 1e-15 in the grey values moves a score by up to 2 points.
Here, what is below rounding is zero; the same noise moves a score by 1e-9, and the two differ by at
most 0.3 points, 0.005 in the median (83 of those crops). The package takes nine times longer.
"""

import hashlib
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load
from scipy.special import gamma

from models.metrics.catalog import Judge, to_pixels
from models.metrics.mscn import coefficients

Floats = npt.NDArray[np.float64]

PARAMETERS = Path(__file__).with_suffix(".safetensors")
PARAMETERS_SHA256 = "53c519df48d2afe853763a7cf47223f67f5f0f92cd61a1a93181e299c6b33277"
# SHA-256 over b"1" and the published svm.txt and normalize.pickle: recorded with every set that was
# scored. Whoever changes this file so that it gives other scores changes the 1, and the digest.
DIGEST = "7177aa76fcc3bb7b6dc72234a7bce66bb6e94b656666001dc3ccb59b2cfd3f9f"
GREY = np.array([0.2125, 0.7154, 0.0721])  # Rec. 709 luma
C = 1 / 255
ROUNDING = 1e-11  # of a local mean in [0, 1], generously; far below one grey level's effect on it
MIN_SIDE = 16  # with fewer pixels, too few products are left to fit
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # H, V, D1, D2 neighbours, Eqs. 7 to 10
ALPHAS = np.geomspace(0.2, 10.0, 4001)  # the published range of shapes, finer
RATIO = gamma(2 / ALPHAS) ** 2 / (gamma(1 / ALPHAS) * gamma(3 / ALPHAS))  # increasing in alpha


class Brisque:
    """The scorer: RGB patches in, scores out; lower is better.

    Attributes:
        digest: SHA-256 over the two published parameter files and the version of this computation.

    Raises:
        ValueError: the file of the parameters is not the one that belongs to the digest.
    """

    digest = DIGEST

    def __init__(self) -> None:
        values = _parameters()
        self._vectors, self._coefficients = values["vectors"], values["coefficients"]
        self._gamma, self._rho = float(values["gamma"][0]), float(values["rho"][0])
        self._low, self._high = values["low"], values["high"]

    def score(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[float]:
        """Score RGB uint8 [H, W, 3] images with sides of 16 or more; NaN where undefined.

        Undefined are images without variation in some statistic, such as one flat colour, and those
        of one row or column, which have no half size.
        """
        return [
            self._regress(self.features(image)) if min(image.shape[:2]) > 1 else math.nan
            for image in images
        ]

    def _regress(self, features: Floats) -> float:
        """Evaluate the regression, in sums whose rounding no thread or batch size changes."""
        scaled = -1 + 2 * (features - self._low) / (self._high - self._low)
        distances = np.square(self._vectors - scaled).sum(1)
        return float((np.exp(-self._gamma * distances) * self._coefficients).sum() - self._rho)

    @staticmethod
    def features(image: npt.NDArray[np.uint8]) -> Floats:
        """Compute the 36 features of one RGB uint8 [H, W, 3] image, 18 a scale."""
        grey = image @ GREY / 255
        half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
        return np.concatenate([_scale_features(grey), _scale_features(half)])


def _scale_features(grey: Floats) -> Floats:
    """Fit the normalised luminance (2 parameters) and its four neighbour products (4 each)."""
    mscn = _normalise(grey)
    alpha, left, right, _ = _fit(mscn)
    features = [alpha, (left + right) / 2]
    height, width = mscn.shape
    for down, across in SHIFTS:
        a = mscn[: height - down, max(0, -across) : width - max(0, across)]
        b = mscn[down:, max(0, across) : width - max(0, -across)]
        alpha, left, right, mean = _fit(a * b)
        features += [alpha, mean, left, right]
    return np.array(features)


def _normalise(grey: Floats) -> Floats:
    """Subtract the local mean, divide by the local deviation: MSCN coefficients, Eqs. 1 to 3."""
    return coefficients(grey, C, ROUNDING, cv2.BORDER_CONSTANT)


def _fit(values: Floats) -> tuple[float, float, float, float]:
    """Fit an asymmetric generalised Gaussian by moments (Lasmar et al. 2009).

    Returns:
        Shape alpha, variance left of zero, variance right of it, mean; NaN where a side is empty.
    """
    flat = values.ravel()
    negative = np.minimum(flat, 0)
    count = np.count_nonzero(negative)
    total, below = float(np.square(flat).sum()), float(np.square(negative).sum())
    if below in (0, total):  # nothing on one side: no ratio of the two
        return (np.nan,) * 4
    left, right = below / count, (total - below) / (flat.size - count)
    ratio = np.sqrt(left / right)
    spread = np.abs(flat).mean() ** 2 / (total / flat.size)
    target = spread * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    alpha = float(np.interp(target, RATIO, ALPHAS))
    one, two, three = (float(gamma(n / alpha)) for n in (1, 2, 3))
    mean = (np.sqrt(right) - np.sqrt(left)) * np.sqrt(one / three) * two / one
    return alpha, left, right, float(mean)


def load_judge(*_: object) -> Judge:
    """Load BRISQUE for the catalogue: one variant, whose parameters are here."""
    import torch  # curation's workers score without it

    model = Brisque()

    def compute(images: torch.Tensor) -> torch.Tensor:
        if min(images.shape[2:]) < MIN_SIDE:
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels: BRISQUE's statistics "
                f"need sides of at least {MIN_SIDE}"
            )
        return torch.tensor(model.score(to_pixels(images)), dtype=torch.float64)

    return Judge(compute, model.digest)


def _parameters() -> dict[str, Floats]:
    """Read the parameters, if they are those that the digest names."""
    data = PARAMETERS.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != PARAMETERS_SHA256:
        raise ValueError(
            f"{PARAMETERS}: SHA-256 is {found[:12]}, but that of BRISQUE's parameters is "
            f"{PARAMETERS_SHA256[:12]}; restore the file from the repository: git checkout "
            f"{shlex.quote(str(PARAMETERS))}"
        )
    return dict(load(data))
