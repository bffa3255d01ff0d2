"""The worker that restores the pictures of a unit and writes what they became.

A picture that cannot be restored has a result with the reason, and the others go on. Doing a unit
again writes the same files.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

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
from pipelines.restore.outputs import write_outputs
from pipelines.restore.pictures import Given, detail, given, made
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
            opened = [(ref, self._opened(ref, fetch)) for ref, fetch in read_ahead(refs)]
            pictures = [picture for _, picture in opened if isinstance(picture, Given)]
            with self.watch("restore"):
                names = [picture.key for picture in pictures]
                faces = iter(self.restorer([picture.pixels for picture in pictures], names))
            return [
                self._written(ref, picture, next(faces)) if isinstance(picture, Given) else picture
                for ref, picture in opened
            ]

    def _opened(self, ref: ImageRef, fetch: Any) -> Given | Result:
        """Read a picture; whatever its bytes or the decoder raise becomes its result."""
        try:
            with self.watch("read"):
                return given(ref.key, ref.file, fetch(), self.restorer.size)
        except UserError:
            raise
        except UnusableImage as error:
            return failed(ref, error.reason, detail(error))
        except MemoryError as error:
            return failed(ref, "out_of_memory", str(error))
        except Exception as error:  # of a decoder or an archive, for one picture of many
            return failed(ref, "undecodable", f"{type(error).__name__}: {error}")

    def _written(self, ref: ImageRef, picture: Given, face: RestoredFace) -> Result:
        with self.watch("write"):
            done = made(picture, face, self.restorer)
            files = write_outputs(self.output, ref.key, done.pictures, done.record)
        return Result(
            key=ref.key,
            bytes=ref.size,
            stamp=ref.stamp,
            files=files,
            faces=done.record["faces"],
            notes=picture.notes,
        )


def failed(ref: ImageRef, reason: str, detail: str) -> Result:
    """Return the result of a picture that could not be restored."""
    said = " ".join(detail.split())
    return Result(key=ref.key, bytes=ref.size, stamp=ref.stamp, reason=reason, detail=said)
