"""Landmarks of an upright face that FFHQ's square lies around, where no picture is needed."""

import numpy as np
import numpy.typing as npt

LANDMARKS: npt.NDArray[np.float64] = np.full((68, 2), 0.5)
"""[68, 2], in the side of its square: eyes and corners of the mouth; the rest in the middle."""
LANDMARKS[36:42], LANDMARKS[42:48] = (0.38, 0.46), (0.62, 0.46)
LANDMARKS[48], LANDMARKS[54] = (0.4, 0.72), (0.6, 0.72)
