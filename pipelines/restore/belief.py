"""Numbers and warnings that tell a user whether to believe a restored face."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from datasets.decoding import Pixels
from models.consistency import THRESHOLD, consistency
from models.faces.alignment import Points
from models.faces.identity import NAME, DlibIdentity, identity_dlib
from pipelines.restore.faces import if_installed
from pipelines.restore.networks import RestoredFace


def numbers(face: RestoredFace, lq: Pixels, landmarks: Points | None = None) -> dict[str, Any]:
    """Return what is said of a restored face in KEY.json and in faces.parquet.

    Args:
        face: what became of it.
        lq: what the networks were given, RGB uint8 [size, size, 3].
        landmarks: [68, 2] in ``lq``; without them, or without the extra `faces`, nothing is said of
            the person.
    """
    found = consistency(face.restored, lq)
    said = {"scale": found.scale, "disagreement": found.disagreement}
    said = {name: round(value, 2) for name, value in said.items()}
    if face.spread is not None:
        said["spread"] = round(float(face.spread.mean()), 3)
    network = None if landmarks is None else face_network()
    if network is not None and landmarks is not None:
        before, after = (network.describe(one, landmarks) for one in (lq, face.restored))
        said[NAME] = round(identity_dlib(before, after), 3)
    return {**said, "doubtful": found.is_doubtful}


@cache
def face_network() -> DlibIdentity | None:
    """Load what describes persons, once in a process; None without the extra `faces`.

    Raises:
        UserError: its weights are damaged.
    """
    return if_installed(DlibIdentity)


def warnings(said: Mapping[str, Any], what: str) -> Iterator[str]:
    """Yield what a user should know, in sentences.

    Args:
        said: from `numbers`.
        what: the face, such as "the restored face".
    """
    if said["doubtful"]:
        yield (
            f"{what} contradicts the input: seen as coarsely as the input, which knows one pixel "
            f"of {said['scale']:g} x {said['scale']:g}, they differ by {said['disagreement']:g} "
            f"levels, and true faces by more than {THRESHOLD:g} in one case of a hundred; do not "
            "believe it unseen"
        )
    if said.get("spread") == 0:
        yield (
            f"all samples of {what} are equal: nothing random enters at this --method, --strength "
            "and --sigma-s"
        )
