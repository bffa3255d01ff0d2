"""The face of scikit-image's astronaut, and the finder that finds it."""

from functools import cache

import numpy as np
from skimage import data

from models.faces.alignment import Alignment, Pixels, Points, crop, square_alignment
from models.faces.dlib_finder import DlibFinder

EYES_AND_MOUTH = np.array([(203.0, 101.0), (246.0, 103.0), (222.0, 143.0)])
"""Marked by hand in the photograph of 512 x 512 pixels; [3, 2]."""
CENTRE = np.array([224.0, 106.0])
"""Of the face's square, which is upright."""
SIDE = 174.0
"""Of the face's square, in pixels."""


@cache
def finder() -> DlibFinder:
    """Load the finder once in a process."""
    return DlibFinder()


def view(size: int, *, share: float = 0.6, turn: float = 0.0) -> Alignment:
    """Return a square of the photograph in which the face is turned clockwise by ``turn`` degrees.

    Args:
        size: of the crop's side, in pixels.
        share: the face's square, in the crop's side.
        turn: in degrees.
    """
    angle = -np.radians(turn)
    right = np.array([np.cos(angle), np.sin(angle)]) * (SIDE / share / 2)
    return square_alignment(CENTRE, right, size)


def portrait(size: int, *, share: float = 0.6, turn: float = 0.0) -> Pixels:
    """Cut that square out."""
    return crop(data.astronaut(), view(size, share=share, turn=turn))


def eyes_and_mouth(landmarks: Points) -> Points:
    """Return the middles of both eyes and of the mouth's corners, [3, 2]."""
    parts = (landmarks[36:42], landmarks[42:48], landmarks[[48, 54]])
    return np.stack([part.mean(axis=0) for part in parts])
