"""dlib and the weights for faces: what the extra `faces` installs, and nothing downloads."""

import hashlib
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from models.checkpoint import CheckpointError

INSTALL = "pip install -e '.[faces]'"
PACKAGE = "face_recognition_models"  # is never executed: it imports what new Pythons do not have
LANDMARKS = "shape_predictor_68_face_landmarks.dat"
DETECTOR = "mmod_human_face_detector.dat"
RECOGNITION = "dlib_face_recognition_resnet_model_v1.dat"
SHA256 = {
    LANDMARKS: "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
    DETECTOR: "4cb19393e2fbaf2b1609a9319ad5386618c886a6234ec1b971f3e87c85d87fe6",
    RECOGNITION: "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
}


class FacesMissingError(CheckpointError):
    """The extra `faces` is not installed; everything that needs no face search works without."""


def load_dlib() -> Any:
    """Import dlib.

    Raises:
        FacesMissingError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module("dlib")
    except ImportError as error:
        raise FacesMissingError(
            f"finding faces needs dlib ({error}): install it with {INSTALL}"
        ) from error


def weights_file(name: str) -> Path:
    """Return where the file of weights ``name`` lies, after a look at its SHA-256.

    Raises:
        FacesMissingError: the package that has it is not installed.
        CheckpointError: the file has other bytes than the published one.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    found = [path for path in (Path(folder, "models", name) for folder in folders) if path.exists()]
    if not found:
        raise FacesMissingError(f"finding faces needs {name}: install it with {INSTALL}")
    with found[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256[name]:
        raise CheckpointError(
            f"{found[0]}: its SHA-256 is {digest}, the published file's is {SHA256[name]}: "
            f"pip uninstall face-recognition-models, then {INSTALL}"
        )
    return found[0]
