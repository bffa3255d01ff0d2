"""How far apart two faces are as persons, by dlib's network (King 2017).

It is a stand-in for the ArcFace features of published tables, and has a name of its own,
`identity_dlib`: the Euclidean distance of two descriptors of 128 numbers. Its author takes a
distance below 0.6 for the same person.
"""

from threading import Lock

import numpy as np

from models.faces.alignment import Pixels, Points, crop, ffhq_alignment
from models.faces.weights import RECOGNITION, SHA256, load_dlib, weights_file

NAME = "identity_dlib"
SAME_PERSON = 0.6
SIDE = 300
"""Of the aligned crop from which dlib takes its own, of 150 pixels."""


class DlibIdentity:
    """Describes faces as persons.

    It can be used from several threads, which wait for each other.

    Raises:
        FacesMissingError: the extra `faces` is not installed.
        CheckpointError: the file of weights is damaged.
    """

    def __init__(self) -> None:
        self._dlib = load_dlib()
        self._network = self._dlib.face_recognition_model_v1(str(weights_file(RECOGNITION)))
        self._lock = Lock()

    @property
    def identity(self) -> str:
        """The digest of the weights."""
        return SHA256[RECOGNITION]

    def describe(self, image: Pixels, landmarks: Points) -> Points:
        """Describe a face by 128 numbers.

        Args:
            image: RGB uint8 [H, W, 3], the face's photograph or its aligned crop.
            landmarks: [68, 2], of the iBUG 300-W scheme, in ``image``.
        """
        alignment = ffhq_alignment(landmarks, SIDE)
        points = np.rint(alignment.to_crop(landmarks)).astype(int).tolist()
        whole = self._dlib.rectangle(0, 0, SIDE - 1, SIDE - 1)
        placed = self._dlib.full_object_detection(whole, [self._dlib.point(*p) for p in points])
        with self._lock:
            described = self._network.compute_face_descriptor(crop(image, alignment), placed)
        return np.array(described, dtype=np.float64)


def identity_dlib(one: Points, other: Points) -> float:
    """Return the distance of two descriptors; below 0.6 they are of one person."""
    return float(np.linalg.norm(one - other))
