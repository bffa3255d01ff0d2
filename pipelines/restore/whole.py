"""A whole photograph: its faces are aligned, restored and put back; all else stays as it was.

A face that cannot be restored has a record with the reason, and the others go on. Where no face is
restored there is no output: the input is never passed off as one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from datasets.decoding import Pixels
from datasets.photographs import Photograph, read_photograph
from datasets.png import offset_chunk, png, profile_chunk, text_chunks
from datasets.unusable import UnusableImage
from models import spread
from models.faces.alignment import crop
from models.faces.colour import Colour, colour_difference, with_colours_of
from models.faces.paste import Layer, Patch, bounds, lay_over, layer
from models.spread import Spread
from pipelines.restore.belief import numbers, warnings
from pipelines.restore.config import WholeRule
from pipelines.restore.faces import ChosenFace
from pipelines.restore.networks import FaceRestorer, RestoredFace
from pipelines.restore.outputs import png as encoded
from pipelines.restore.outputs import text_of
from pipelines.restore.pictures import Made, detail, facts_of, made_with
from pipelines.restore.reasons import sentence

Restore = Callable[[Sequence[Pixels], Sequence[str]], Sequence[RestoredFace]]
"""Restores crops of the model's size, each by its name."""
Choose = Callable[[Pixels], Sequence[ChosenFace]]
"""Finds the faces of a photograph, RGB uint8 [H, W, 3], and decides which are restored."""


class NoFaceRestored(UnusableImage):
    """A photograph of which no face was restored.

    Attributes:
        faces: a record for each face that was found.
    """

    def __init__(self, faces: Sequence[Mapping[str, Any]]) -> None:
        said = "; ".join(f"face {face['number']}: {face['reason']}" for face in faces)
        super().__init__("no_face_restored" if faces else "no_face", said)
        self.faces = faces


@dataclass(frozen=True, slots=True)
class RestoredFaces:
    """What the faces of a photograph became."""

    records: dict[int, dict[str, Any]]
    """What is known of each face that was found, by its number, as JSON values."""
    patches: dict[int, list[Patch]]
    """Of each face that was restored, by its number: one for each of its restorations."""
    spreads: dict[int, Spread]
    """How much these differ, where there are several."""


def made_whole(
    key: str, file: str, data: bytes, choose: Choose, restorer: FaceRestorer, rule: WholeRule
) -> Made:
    """Restore the faces of a photograph, and encode what it became.

    Args:
        key: its name; face n is restored under the name KEY:n.
        file: the name of its file, for the JSON.
        data: the whole file.
        choose: says which faces it has, and which are to be restored.
        restorer: of faces.
        rule: how they are put back.

    Raises:
        UnusableImage: it cannot be read, or no face was restored.
    """
    photograph = read_photograph(data)
    faces = restore_faces(photograph, key, choose, restorer, rule.colour)
    text = text_of(restorer.settings)
    pictures = {
        f"layers/face-{number}.spread": encoded(spread.picture(levels), text)
        for number, levels in faces.spreads.items()
    }
    samples = list(zip(*faces.patches.values(), strict=True))
    for sample, patches in enumerate(samples):
        is_last = sample == len(samples) - 1
        result = photograph if is_last else replace(photograph, levels=photograph.levels.copy())
        laid = zip(faces.patches, put_back(result, patches), strict=True)
        for number, made in laid:
            if rule.layers and sample == 0:
                name = f"layers/face-{number}"
                faces.records[number]["layer"] = {"picture": name, "offset": [made.x, made.y]}
                pictures[name] = encoded_layer(photograph, made, text)
        pictures[f"sample-{sample}" if sample else ""] = result.png(text)
    return Made(
        pictures=pictures,
        record={
            "key": key,
            "input": facts_of(file, data, photograph.width, photograph.height),
            **made_with(restorer),
            "whole": asdict(rule),
            "faces": list(faces.records.values()),
            "notes": [*photograph.notes, *_remarks(faces.records)],
        },
    )


def restore_faces(
    photograph: Photograph, key: str, choose: Choose, restore: Restore, colour: Colour
) -> RestoredFaces:
    """Restore the chosen faces of a photograph, which stays as it is.

    Args:
        photograph: where they are.
        key: its name; face n is restored under the name KEY:n.
        choose: says which faces it has, and which are to be restored.
        restore: restores crops.
        colour: which of the input's colours they get.

    Raises:
        NoFaceRestored: none was found, or none of them was restored.
    """
    records: dict[int, dict[str, Any]] = {}
    patches: dict[int, list[Patch]] = {}
    spreads: dict[int, Spread] = {}
    chosen, crops = _cut_out(photograph, choose, records)
    made = _restored(restore, crops, [f"{key}:{face.number}" for face in chosen])
    for face, lq, restored in zip(chosen, crops, made, strict=True):
        if isinstance(restored, str):
            records[face.number] |= {"outcome": "failed", "reason": restored}
            continue
        shown = (restored.restored, *restored.samples)
        coloured = [with_colours_of(one, lq, colour) for one in shown]
        records[face.number] |= {
            "outcome": "restored",
            **numbers(
                replace(restored, restored=coloured[0]),
                lq,
                face.alignment.to_crop(face.face.landmarks),
            ),
            "colour_difference": {
                "before": round(colour_difference(shown[0], lq), 2),
                "after": round(colour_difference(coloured[0], lq), 2),
            },
        }
        if restored.spread is not None:
            spreads[face.number] = restored.spread
        before = photograph.from_srgb(lq)
        patches[face.number] = [
            Patch(face.alignment, photograph.from_srgb(one), before) for one in coloured
        ]
    if not patches:
        raise NoFaceRestored(list(records.values()))
    return RestoredFaces(records, patches, spreads)


def _cut_out(
    photograph: Photograph, choose: Choose, records: dict[int, dict[str, Any]]
) -> tuple[list[ChosenFace], list[Pixels]]:
    """Return the faces to restore and their crops; every face found gets a record."""
    shown = photograph.srgb()
    ready = []
    for face in choose(shown):
        records[face.number] = record = face.record()
        left, top, right, bottom = bounds(face.alignment, photograph.width, photograph.height)
        if face.left_alone:
            record |= {"outcome": "left alone", "reason": face.left_alone}
        elif left >= right or top >= bottom:
            record |= {"outcome": "failed", "reason": "its square is outside the photograph"}
        else:
            ready.append(face)
    return ready, [crop(shown, face.alignment) for face in ready]


def _restored(
    restore: Restore, crops: Sequence[Pixels], names: Sequence[str]
) -> list[RestoredFace | str]:
    """Restore crops; one that cannot be has the reason. What fails together is tried apart."""
    if not crops:
        return []
    try:
        return list(restore(crops, names))
    except Exception as error:  # of one face among many: an overflow, a GPU's memory
        if len(crops) == 1:
            return [_said(error)]
    return [
        made
        for lq, name in zip(crops, names, strict=True)
        for made in _restored(restore, [lq], [name])
    ]


def _said(error: Exception) -> str:
    if isinstance(error, UnusableImage):
        return sentence(error.reason, detail(error))
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def put_back(photograph: Photograph, patches: Sequence[Patch]) -> Iterator[Layer]:
    """Lay restored faces over a photograph, in place, and yield the layer of each."""
    for number in range(len(patches)):
        made = layer(photograph.levels, patches, number)
        lay_over(photograph.levels, made)
        yield made


def _remarks(records: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what a user should know of the faces, in sentences."""
    for number, record in records.items():
        if record["outcome"] == "failed":
            yield f"Face {number} was not restored: {record['reason']}"
        elif record["outcome"] == "restored":
            yield from warnings(record, f"Face {number}")


def encoded_layer(photograph: Photograph, made: Layer, text: Mapping[str, str]) -> bytes:
    """Encode a layer as PNG in the photograph's depth and colours, with its offset."""
    profile = [profile_chunk(photograph.profile)] if photograph.profile else []
    chunks = [*profile, offset_chunk(made.x, made.y), *text_chunks(text)]
    return png(made.colours, made.alpha, chunks)
