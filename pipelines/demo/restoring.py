"""A photograph's bytes in, the files of the command in memory out.

Every picture goes the way of `python -m pipelines.restore`, and has the same bytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from math import ceil
from typing import Any

import cv2
import numpy as np
import torch

from datasets.decoding import Pixels, decode
from datasets.photographs import read_photograph
from datasets.unusable import UnusableImage
from infra.config import pretty_json
from infra.errors import UserError
from models.faces.find import FaceFinder
from models.restorer import steps_taken
from pipelines.demo.app import Facts
from pipelines.demo.config import DemoConfig
from pipelines.demo.job_queue import Result
from pipelines.demo.options import CONTROLS, Options
from pipelines.restore.config import WholeRule
from pipelines.restore.faces import (
    ChosenFace,
    FaceRefusal,
    choose_faces,
    finder_if_installed,
)
from pipelines.restore.networks import FaceRestorer
from pipelines.restore.outputs import png
from pipelines.restore.pictures import Made, checked, detail, given, made
from pipelines.restore.reasons import sentence
from pipelines.restore.whole import made_whole

REFUSALS = {
    "not_aligned": "this is no aligned face: a square picture, framed as those that the model was "
    "trained on; choose 'A whole photograph'",
    "no_face": "no face was found in the photograph",
    "out_of_memory": "the machine has too little memory for this picture now; try again later",
}
"""What the page says for a reason where the command would name an option that the page has not."""
Advance = Callable[[float], None]
"""Takes the share that is done, from 0 to 1."""


class Restoration:
    """A model at work for the page.

    Args:
        config: of the page.

    Raises:
        UsageError: a model or a device that cannot be used.
    """

    def __init__(self, config: DemoConfig) -> None:
        device = config.rule.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._restorer = FaceRestorer(replace(config.rule, device=device))
        self._max_pixels = int(config.max_megapixels * 1e6)
        self._whole = WholeRule(whole=True, min_face=config.min_face)
        settings, size = self._restorer.settings, self._restorer.size
        self.facts = Facts(
            described=f"{settings['method']} {settings['model'][:12]}, faces of {size} x {size} "
            f"pixels, on a {'GPU' if device == 'cuda' else 'CPU'}",
            size=size,
            defaults={name: settings[name] for name in CONTROLS},
        )

    @cached_property
    def _finder(self) -> FaceFinder | None:
        """What finds faces, loaded for the first picture that needs it."""
        return finder_if_installed()

    def __call__(self, photograph: bytes, options: Options, advance: Advance) -> Result:
        """Restore a photograph; see `pipelines.demo.job_queue.Restoring`."""
        restorer = self._restorer.varied(**options.changes)
        restore = self._restore_whole if options.whole else self._restore_face
        try:
            with _counted(restorer, advance) as count:
                return restore(photograph, options, restorer, count)
        except (UnusableImage, FaceRefusal) as error:
            said = detail(error) if isinstance(error, UnusableImage) else str(error)
            said = REFUSALS.get(error.reason) or sentence(error.reason, said)
            raise UserError(said) from error

    def _restore_face(
        self, data: bytes, options: Options, restorer: FaceRestorer, count: "_Count"
    ) -> Result:
        smallest = self._whole.smallest(restorer.size)
        picture = given(
            options.key, options.name, data, restorer.size, self._max_pixels, smallest=smallest
        )
        if restorer.bundle.alignment == "ffhq":
            picture = checked(picture, self._finder)
        (face,) = restorer([picture.pixels], [picture.key])
        mean = face.posterior_mean
        done = made(picture, face, restorer)
        return result(done, picture.pixels, None if mean is None else png(mean, {}))

    def _restore_whole(
        self, data: bytes, options: Options, restorer: FaceRestorer, count: "_Count"
    ) -> Result:
        before = read_photograph(data, self._max_pixels).srgb()
        rule = replace(self._whole, faces=options.faces, colour=options.colour)
        faces = choose_faces(before, rule, restorer.size, self._finder)
        count.faces = sum(not face.left_alone for face in faces)

        def restored(by: FaceRestorer) -> Made:
            return made_whole(options.key, options.name, data, lambda _: faces, by, rule)

        done = restored(restorer)
        mean = restored(restorer.varied(strength=0.0, samples=1)).pictures[""]
        return result(_flat(done, before, faces), before, mean)


def _flat(done: Made, before: Pixels, faces: Sequence[ChosenFace]) -> Made:
    """Put the maps of the faces' spreads where the faces are, black elsewhere, as one picture."""
    height, width = before.shape[:2]
    whole = np.zeros_like(before)
    for face in faces:
        map_of_face = done.pictures.get(f"layers/face-{face.number}.spread")
        if map_of_face is not None:
            to_photograph = face.alignment.matrix
            placed = cv2.warpAffine(decode(map_of_face), to_photograph, (width, height))
            np.maximum(whole, placed, out=whole)
    pictures = {what: data for what, data in done.pictures.items() if "/" not in what}
    if len(pictures) < len(done.pictures):
        pictures["spread"] = png(whole, {})
    return replace(done, pictures=pictures)


def result(done: Made, before: Pixels, posterior_mean: bytes | None) -> Result:
    """Put together what the page shows of a picture, in the order in which it shows it."""
    files = {
        "input.png": png(before, {}),
        "restored.png": done.pictures[""],
        "restored.json": pretty_json(dict(done.record)),
    }
    if posterior_mean is not None:
        files["posterior-mean.png"] = posterior_mean
    if "spread" in done.pictures:
        files["spread.png"] = done.pictures["spread"]
    files |= {f"{what}.png": data for what, data in done.pictures.items() if what}
    return Result(files, {"facts": facts(done.record), "warnings": warnings(done.record)})


def facts(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the numbers that the page shows beside a picture, as text by their names."""
    faces = [face for face in record["faces"] if face["outcome"] == "restored"]
    shown = {"model": record["settings"]["model"][:12]}
    if "whole" in record:
        shown["faces restored"] = f"{len(faces)} of {len(record['faces'])}"
    for name in ("disagreement", "spread"):
        if all(name in face for face in faces):
            shown[name] = f"{max(face[name] for face in faces):.2f} levels"
    return shown


def warnings(record: Mapping[str, Any]) -> list[str]:
    """Return what a user should know: the notes, and why a face that was asked for is as it was."""
    left = [
        f"face {face['number']} is as it was: {face['reason']}"
        for face in record["faces"]
        if face.get("reason") and not face["reason"].startswith("not_chosen")
    ]
    return [*record["notes"], *left]


class _Count:
    """Counts evaluations of a network, and says which share they are of those that are needed.

    Attributes:
        faces: how many are to be restored.
    """

    def __init__(self, restorer: FaceRestorer, advance: Advance) -> None:
        rule, settings = restorer.rule, restorer.settings
        evaluations = 2 if settings["solver"] == "heun" else 1
        steps = steps_taken(settings["steps"], rule.strength) * evaluations
        self.faces, self._each, self._advance = 1, steps * rule.samples, advance
        self._batch, self._done = restorer.batch, 0

    def __call__(self, *_: Any) -> None:
        """Count one, of a network's forward hook."""
        self._done += 1
        passes = ceil(self.faces / self._batch)
        self._advance(min(1.0, self._done / (self._each * passes)))


@contextmanager
def _counted(restorer: FaceRestorer, advance: Advance) -> Iterator[_Count]:
    """Say how far a restorer is while the block runs."""
    count = _Count(restorer, advance)
    hook = restorer.velocity.register_forward_hook(count)
    try:
        yield count
    finally:
        hook.remove()
