"""Two stand-ins by dlib, for whoever lacks the weights of Deg and LMD; under names of their own.

``identity_dlib`` is the distance of two faces as persons (`models.faces.identity`); below 0.6 they
are one. ``landmarks_dlib`` is the mean distance of 68 landmarks, in pixels of a picture that is 512
wide, whatever the size of the pictures. Neither can be compared with Deg or LMD, nor with a
published number. Lower is better, and 0 is a picture and itself.

The face of each picture is looked for in it. Where one of the two has none, there is no value.
"""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.faces.alignment import Pixels, Points
from models.faces.dlib_finder import DlibFinder
from models.faces.identity import DlibIdentity, identity_dlib
from models.metrics.catalog import Judge, to_pixels
from models.metrics.fidelity import check_pair

PICTURE = 512  # pixels of the picture in which distances are told
Compare = Callable[[Pixels, Points, Pixels, Points], float]


def load_identity(*_: object) -> Judge:
    """Load `identity_dlib` for the catalogue; its weights are those of the extra `faces`.

    Raises:
        FacesMissingError: the extra `faces` is not installed.
        CheckpointError: a file of its weights is damaged.
    """
    finder, network = DlibFinder(), DlibIdentity()

    def compare(image: Pixels, points: Points, reference: Pixels, others: Points) -> float:
        return identity_dlib(network.describe(image, points), network.describe(reference, others))

    both = finder.identity + network.identity
    return Judge(_by_pairs(finder, compare), hashlib.sha256(both.encode()).hexdigest())


def load_landmarks(*_: object) -> Judge:
    """Load `landmarks_dlib` for the catalogue; its weights are those of the extra `faces`.

    Raises:
        FacesMissingError: the extra `faces` is not installed.
        CheckpointError: a file of its weights is damaged.
    """
    finder = DlibFinder()
    return Judge(_by_pairs(finder, _mean_distance), finder.identity)


def _mean_distance(image: Pixels, points: Points, reference: Pixels, others: Points) -> float:
    """Return the mean distance of two faces' landmarks, each in its picture made 512 wide."""
    apart = points * (PICTURE / image.shape[1]) - others * (PICTURE / reference.shape[1])
    return float(torch.from_numpy(apart).norm(dim=1).mean())


def _by_pairs(finder: DlibFinder, compare: Compare) -> Callable[[Tensor, Tensor], Tensor]:
    """Make a judge's ``compute`` of what compares two pictures with one face in each."""

    def value(image: Pixels, reference: Pixels) -> float:
        face, other = finder.find_main(image), finder.find_main(reference)
        if face is None or other is None:
            return math.nan
        return compare(image, face.landmarks, reference, other.landmarks)

    def compute(images: Tensor, reference: Tensor) -> Tensor:
        check_pair(images, reference)
        pairs = zip(to_pixels(images), to_pixels(reference), strict=True)
        values = [value(*pair) for pair in pairs]
        return torch.tensor(values, dtype=torch.float64, device=images.device)

    return compute
