"""The memory that one whole photograph takes: run as a program, in a process of its own."""

import resource
import sys
from pathlib import Path

import numpy as np

from models.faces.alignment import square_alignment
from models.faces.find import Face
from pipelines.restore.config import RestoreRule, WholeRule
from pipelines.restore.faces import ChosenFace
from pipelines.restore.networks import FaceRestorer
from pipelines.restore.whole import made_whole
from tests.support.face_points import LANDMARKS

SQUARES = ((0.2, 0.3, 0.05, 10), (0.6, 0.6, 0.2, 30), (0.62, 0.35, 0.2, -20), (0.98, 0.9, 0.1, 0))
"""Centre and side in parts of the photograph's side, and angle in degrees."""


def faces(shown: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], size: int) -> list[ChosenFace]:
    """Choose some squares of a photograph: small, large, overlapping, over the border."""
    side = max(shown.shape)
    chosen = []
    for number, (x, y, part, turned) in enumerate(SQUARES, start=1):
        angle = np.deg2rad(turned)
        right = part * side / 2 * np.array([np.cos(angle), np.sin(angle)])
        alignment = square_alignment(np.array([x * side, y * side]), right, size)
        landmarks = alignment.to_photograph(size * LANDMARKS)
        chosen.append(ChosenFace(number, Face((0, 0, 1, 1), None, landmarks), alignment))
    return chosen


def peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(model: str, file: str) -> None:
    """Restore a photograph; print the bytes that it took beside the program and the file."""
    restorer = FaceRestorer(RestoreRule(model=model, device="cpu"))
    restorer([np.zeros((restorer.size, restorer.size, 3), np.uint8)], ["first"])
    data = Path(file).read_bytes()
    before = peak()
    made = made_whole(
        *("large", file, data, lambda shown: faces(shown, restorer.size), restorer),
        WholeRule(whole=True, layers=True),
    )
    outcomes = [face["outcome"] for face in made.record["faces"]]
    sys.stdout.write(f"{peak() - before} {outcomes.count('restored')}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
