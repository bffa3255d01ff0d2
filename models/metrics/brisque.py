"""BRISQUE, the no-reference quality metric that needs no download.

Mittal, Moorthy, Bovik: No-Reference Image Quality Assessment in the Spatial Domain (IEEE TIP
2012). Natural-scene statistics of locally normalised luminance, at two scales, are fitted by
generalised Gaussians; a support vector regression maps the 36 parameters to the opinion scores of
the LIVE database. Its support vectors and feature ranges ship in the package `brisque`, whose
conventions are followed where the paper leaves a choice, so that scores can be compared: grey by
Rec. 709 in [0, 1], C = 1/255, zeros beyond the border. One of them is not the paper's: the second
scale is bicubic without the low-pass filter (with it, scores move by 4.4 points in the standard
deviation and keep their order, Spearman 0.98, over 411 crops of real photographs).

Where a region is flat, the sign of the normalised luminance is left to rounding, and signs are
counted: as the package does it, noise of 1e-15 in the grey values moves a score by up to 2 points.
Here, what is below rounding is zero; the same noise moves a score by 1e-9, and the two differ by at
most 0.3 points, 0.005 in the median (83 of those crops). The package takes nine times longer.
"""

import hashlib
import importlib.metadata
import io
import pickle
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy.special import gamma

Floats = npt.NDArray[np.float64]

PACKAGE = "brisque"
GREY = np.array([0.2125, 0.7154, 0.0721])  # Rec. 709 luma
WINDOW, SIGMA = 7, 7 / 6  # section III-A
C = 1 / 255
ROUNDING = 1e-11  # of a local mean in [0, 1], generously; far below one grey level's effect on it
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # H, V, D1, D2 neighbours, Eqs. 7 to 10
CONVENTIONS = b"1"  # changes whenever this file would give other scores for the same parameters
ALPHAS = np.geomspace(0.2, 10.0, 4001)  # the published range of shapes, finer
RATIO = gamma(2 / ALPHAS) ** 2 / (gamma(1 / ALPHAS) * gamma(3 / ALPHAS))  # increasing in alpha


class Brisque:
    """The scorer: RGB patches in, scores out; lower is better.

    Attributes:
        scale: typical values. The regression is not bounded: on crops of real photographs it gave
            -13 (crisp texture) to 116 (empty gradients).
        min_side: pixels that an image must have on each side.
        default_threshold: above it, such crops begin to be out of focus or empty; a fair
            photograph's textured parts lie below 30.
        digest: SHA-256 over the two parameter files and the version of this computation.

    Raises:
        FileNotFoundError: the package with the parameters is not installed.
    """

    name = "brisque"
    scale = (0.0, 100.0)
    higher_is_better = False
    default_threshold: float | None = 40.0
    min_side = 16

    def __init__(self) -> None:
        model, ranges = _parameter_file("svm.txt"), _parameter_file("normalize.pickle")
        self.digest = hashlib.sha256(CONVENTIONS + model + ranges).hexdigest()
        self._coefficients, self._vectors, self._gamma, self._rho = _parse_svm(model.decode())
        scale = _PlainUnpickler(io.BytesIO(ranges)).load()
        self._low, self._high = np.array(scale["min_"]), np.array(scale["max_"])

    def score(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[float]:
        """Score RGB uint8 [H, W, 3] images with sides of ``min_side`` or more; NaN where undefined.

        Undefined are images without variation in some statistic, such as one flat colour.
        """
        return [self._regress(self.features(image)) for image in images]

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
    kernel = cv2.getGaussianKernel(WINDOW, SIGMA)

    def local(values: Floats) -> Any:
        return cv2.sepFilter2D(values, -1, kernel, kernel, borderType=cv2.BORDER_CONSTANT)

    mean = local(grey)
    deviation = np.sqrt(np.abs(local(grey * grey) - mean * mean))
    difference = grey - mean
    difference[np.abs(difference) < ROUNDING] = 0
    normalised: Floats = difference / (deviation + C)
    return normalised


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


def _parse_svm(text: str) -> tuple[Floats, Floats, float, float]:
    """Read a libsvm epsilon-SVR file: coefficients [n], support vectors [n, 36], gamma, rho."""
    header, _, body = text.partition("\nSV\n")
    fields = dict(line.split(maxsplit=1) for line in header.splitlines())
    lines = body.splitlines()
    vectors = np.zeros((len(lines), 36))
    coefficients = np.zeros(len(lines))
    for row, line in enumerate(lines):
        coefficient, *entries = line.split()
        coefficients[row] = float(coefficient)
        for entry in entries:
            column, _, value = entry.partition(":")
            vectors[row, int(column) - 1] = float(value)
    return coefficients, vectors, float(fields["gamma"]), float(fields["rho"])


def _parameter_file(name: str) -> bytes:
    """Read a file of the package that ships the parameters, without importing that package."""
    try:
        path = importlib.metadata.distribution(PACKAGE).locate_file(f"brisque/models/{name}")
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            f"BRISQUE's parameters are in the package {PACKAGE!r}: pip install brisque==0.2.0"
        ) from error
    with open(str(path), "rb") as file:  # noqa: PTH123  (locate_file's own path type)
        return file.read()


class _PlainUnpickler(pickle.Unpickler):
    """Admits lists, dicts and numbers; a pickle that names any class is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in a file that should hold plain numbers")
