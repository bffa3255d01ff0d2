"""The worker that restores the pictures of a unit and writes what they became.

A picture that cannot be restored has a result with the reason, and the others go on. Doing a unit
again writes the same files.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2

from datasets.decoding import MAX_PIXELS, Pixels, decode
from datasets.fetching import read_ahead
from datasets.sources import ImageRef
from datasets.unusable import UnusableImage
from infra.config import from_dict
from infra.errors import UserError
from infra.paths import path_of
from pipelines.jobs.attempts import Attempt, attempt
from pipelines.jobs.stage import Stopwatch
from pipelines.restore.config import RestoreRule, WholeRule
from pipelines.restore.networks import FaceRestorer, RestoredFace
from pipelines.restore.outputs import png, text_of, write_outputs
from pipelines.restore.results import Result


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreSpec:
    """What all units of a job share."""

    rule: RestoreRule
    whole: WholeRule
    output: str
    """The output folder."""
    notes: str
    """Folder for the notes of `pipelines.jobs.attempts`."""
    session: str
    """Name of the job that is running."""
    model: str
    """Digest of the bundle that the job began with."""


@dataclass(frozen=True, slots=True)
class Given:
    """A picture that is to be restored."""

    ref: ImageRef
    pixels: Pixels
    """Of the model's size."""
    facts: dict[str, Any]
    """Of the file, for the JSON."""
    notes: list[str]


class RestoreImages:
    """Restores pictures of aligned faces, each the whole picture."""

    def __init__(self, spec: RestoreSpec) -> None:
        self.spec = spec
        self.restorer = FaceRestorer(spec.rule, spec.model)
        self.output = path_of(spec.output)
        self.watch = Stopwatch()

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Restore the pictures of ``unit["images"]``; returns a result for each."""
        refs = [from_dict(ImageRef, values) for values in unit["images"]]
        folder = path_of(self.spec.notes)
        with attempt(folder, unit["name"], self.spec.session) as begun:
            size = 1 if begun.is_careful else self.restorer.batch
            results = [
                result
                for first in range(0, len(refs), size)
                for result in self._restored(refs[first : first + size], begun)
            ]
        rows = [asdict(result) for result in results]
        return {"done": len(refs), "seconds": self.watch.take(), "results": rows}

    def _restored(self, refs: Sequence[ImageRef], begun: Attempt) -> list[Result]:
        """Restore pictures that share a pass of the networks."""
        if begun.has_killed(refs[0].key):
            said = "the process that restored it was killed, again and again"
            return [failed(refs[0], "crashed", said)]
        with begun.doing(refs[0].key):
            opened = [self._opened(ref, fetch) for ref, fetch in read_ahead(refs)]
            given = [picture for picture in opened if isinstance(picture, Given)]
            with self.watch("restore"):
                names = [picture.ref.key for picture in given]
                faces = iter(self.restorer([picture.pixels for picture in given], names))
            return [
                self._written(picture, next(faces)) if isinstance(picture, Given) else picture
                for picture in opened
            ]

    def _opened(self, ref: ImageRef, fetch: Any) -> Given | Result:
        """Read a picture; whatever its bytes or the decoder raise becomes its result."""
        try:
            with self.watch("read"):
                data = fetch()
                pixels = decode(data, MAX_PIXELS)
            facts = {"file": ref.file, "bytes": len(data), "sha256": sha256(data)}
            return self._fitted(ref, pixels, facts)
        except UserError:
            raise
        except UnusableImage as error:
            return failed(ref, error.reason, str(error))
        except MemoryError as error:
            return failed(ref, "out_of_memory", str(error))
        except Exception as error:  # of a decoder or an archive, for one picture of many
            return failed(ref, "undecodable", f"{type(error).__name__}: {error}")

    def _fitted(self, ref: ImageRef, pixels: Pixels, facts: dict[str, Any]) -> Given | Result:
        """Bring a picture of an aligned face to the model's size."""
        height, width = pixels.shape[:2]
        if height != width:
            return failed(
                ref,
                "not_aligned",
                f"{width} x {height} pixels: not square, so not an aligned face; give --whole for "
                "photographs",
            )
        size, notes = self.restorer.size, []
        if height != size:
            notes.append(f"{height} x {height} pixels were resized to the model's {size} x {size}")
            way = cv2.INTER_AREA if height > size else cv2.INTER_CUBIC
            pixels = cv2.resize(pixels, (size, size), interpolation=way)
        return Given(ref, pixels, {**facts, "size": [width, height]}, notes)

    def _written(self, given: Given, face: RestoredFace) -> Result:
        settings = self.restorer.settings
        with self.watch("write"):
            text = text_of(settings)
            samples = {f"sample-{n}": s for n, s in enumerate(face.samples, start=1)}
            pictures = {"": face.restored, **samples}
            record: dict[str, Any] = {"face": 1, "outcome": "restored"}
            made = {
                "key": given.ref.key,
                "input": given.facts,
                "settings": {**settings, "device": self.restorer.device.type},
                "faces": [record],
                "notes": given.notes,
            }
            encoded = {what: png(pixels, text) for what, pixels in pictures.items()}
            files = write_outputs(self.output, given.ref.key, encoded, made)
        return Result(
            key=given.ref.key,
            bytes=given.ref.size,
            stamp=given.ref.stamp,
            files=files,
            faces=[record],
            notes=given.notes,
        )


def failed(ref: ImageRef, reason: str, detail: str) -> Result:
    """Return the result of a picture that could not be restored."""
    said = " ".join(detail.split())
    return Result(key=ref.key, bytes=ref.size, stamp=ref.stamp, reason=reason, detail=said)


def sha256(data: bytes) -> str:
    """Hash the bytes of a file, in hex."""
    return hashlib.sha256(data).hexdigest()
