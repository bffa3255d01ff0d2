"""The faces that a user corrected or drew: what `--faces-json` names.

The JSON beside each output lists the faces of its photograph; corrected by hand, it is such a file.
Here its form is checked; whether a face fits its photograph is seen in `pipelines.restore.faces`.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from infra.config import read_object
from infra.errors import UsageError
from infra.paths import path_of
from models.faces.alignment import LANDMARKS
from models.faces.find import Box


@dataclass(frozen=True, eq=False)
class GivenFace:
    """A face of `--faces-json`: landmarks, or a box in which they are looked for, or both."""

    number: int | None
    box: Box | None
    landmarks: tuple[tuple[float, float], ...] | None


GivenFaces = dict[str, list[GivenFace]]
"""The faces of each photograph, by its key; an empty list says that it has none."""


def read_faces_json(path: str, keys: Collection[str]) -> GivenFaces:
    """Read the faces that a user corrected or drew.

    The file is the JSON beside an output, or an object with a list of faces for each key of a
    photograph. Of a face, "number", "box" and "landmarks" are read, and all else is passed over.

    Args:
        path: the file, or s3://; "" is no file.
        keys: of all photographs of the input.

    Raises:
        UsageError: it cannot be read, has another form, or names a photograph that is not there.
    """
    if not path:
        return {}
    content = read_object(path_of(path), f"--faces-json {path}")
    if isinstance(content.get("key"), str):  # the JSON beside an output
        content = {content["key"]: content.get("faces")}
    unknown = sorted(content.keys() - set(keys))
    if unknown:
        raise UsageError(
            f"--faces-json {path}: {unknown[0]!r} is no key of a photograph of the input; a key is "
            "the path inside the input without its extension"
        )
    return {
        key: _given_list(faces, f"--faces-json {path}: {key}") for key, faces in content.items()
    }


def _given_list(values: object, where: str) -> list[GivenFace]:
    if not isinstance(values, list):
        raise UsageError(f"{where}: holds no list of faces; give [] where there is none")
    faces = [_given_face(value, f"{where}: face {n}") for n, value in enumerate(values, start=1)]
    numbers = [face.number for face in faces if face.number is not None]
    for number in numbers:
        if numbers.count(number) > 1:
            raise UsageError(f"{where}: two faces have the number {number}; give each its own")
    return faces


def _given_face(value: object, where: str) -> GivenFace:
    """Check the form of a face; whether it fits its photograph is seen when that is read."""
    if not isinstance(value, dict) or value.get("box", value.get("landmarks")) is None:
        raise UsageError(
            f"{where}: give an object with a box [left, top, right, bottom], or with {LANDMARKS} "
            "landmarks [x, y], in pixels"
        )
    number, box, landmarks = (value.get(name) for name in ("number", "box", "landmarks"))
    if number is not None and (type(number) is not int or number < 1):
        raise UsageError(f"{where}: number {number!r}; give a whole number from 1 on")
    if box is not None and not (_is_numbers(box, 4) and box[0] < box[2] and box[1] < box[3]):
        raise UsageError(f"{where}: box {box!r}; give [left, top, right, bottom], in pixels")
    if landmarks is not None and not (
        isinstance(landmarks, list)
        and len(landmarks) == LANDMARKS
        and all(_is_numbers(point, 2) for point in landmarks)
    ):
        raise UsageError(f"{where}: landmarks are {LANDMARKS} points [x, y], in pixels, or null")
    edges: Box | None = None
    if box is not None:
        left, top, right, bottom = map(float, box)
        edges = (left, top, right, bottom)
    points = None if landmarks is None else tuple((float(x), float(y)) for x, y in landmarks)
    return GivenFace(number, edges, points)


def _is_numbers(values: object, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and np.isfinite(value) for value in values)
    )
