"""The worker that restores the pictures of a unit and writes what they became.

A picture that cannot be restored has a result with the reason, and the others go on. Doing a unit
again writes the same files.

Beside a GPU, threads read and decode the next pictures and encode and write the last ones while the
networks compute. On CPUs there is a worker for each core, and every worker does one thing at a
time.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch

from datasets.fetching import READERS, Fetch, read_ahead
from datasets.sources import ImageRef
from datasets.unusable import UnusableImage
from infra.ahead import map_ahead
from infra.config import from_dict
from infra.errors import UserError
from infra.paths import path_of
from pipelines.jobs.attempts import Attempt, attempt
from pipelines.jobs.stage import Stopwatch
from pipelines.restore.config import RestoreRule, WholeRule
from pipelines.restore.networks import FaceRestorer, RestoredFace
from pipelines.restore.outputs import write_outputs
from pipelines.restore.pictures import Given, detail, given, made
from pipelines.restore.reasons import sentence
from pipelines.restore.results import Result

THREADS = 4  # that decode, and that write, beside a GPU: a face takes 5 ms and 10 ms of theirs


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


Opened = tuple[ImageRef, Given | Result]
"""A picture that is to be restored, or why it cannot be."""
Restored = tuple[ImageRef, Given, RestoredFace] | Result


class RestoreImages:
    """Restores pictures of aligned faces, each the whole picture."""

    def __init__(self, spec: RestoreSpec) -> None:
        self.spec = spec
        self.restorer = FaceRestorer(spec.rule, spec.model)
        self.smallest = spec.whole.smallest(self.restorer.size)
        self.output = path_of(spec.output)
        self.threads = THREADS if self.restorer.device.type == "cuda" else 0
        self.watch = Stopwatch()

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Restore the pictures of ``unit["images"]``; returns a result for each."""
        refs = [from_dict(ImageRef, values) for values in unit["images"]]
        folder, spec = path_of(self.spec.notes), self.spec
        with attempt(folder, unit["name"], spec.session, unit["what"]) as begun:
            if begun.is_careful:
                results = [self._alone(ref, begun) for ref in refs]
            else:
                results = list(self._together(refs, self.threads))
        rows = [asdict(result) for result in results]
        return {"done": len(refs), "seconds": self.watch.take(), "results": rows}

    def _alone(self, ref: ImageRef, begun: Attempt) -> Result:
        """Restore a picture of a unit that has killed a process; nothing else is under way."""
        if begun.has_killed(ref.key):
            return failed(ref, "crashed")
        with begun.doing(ref.key):
            return next(self._together([ref], threads=0))

    def _together(self, refs: Sequence[ImageRef], threads: int) -> Iterator[Result]:
        """Restore pictures; yields their results in order."""
        size = self.restorer.batch
        reading = read_ahead(refs, max(READERS, size))
        opened = map_ahead(self._opened, reading, threads=threads, ahead=2 * size)
        restored = (one for part in batches(opened, size) for one in self._restored(part))
        yield from map_ahead(self._written, restored, threads=threads, ahead=size)

    def _opened(self, read: tuple[ImageRef, Fetch]) -> Opened:
        """Read a picture; whatever its bytes or the decoder raise becomes its result."""
        ref, fetch = read
        try:
            with self.watch("read"):
                data = fetch()
            with self.watch("decode"):
                size, smallest = self.restorer.size, self.smallest
                return ref, given(ref.key, ref.file, data, size, smallest=smallest)
        except UserError:
            raise
        except UnusableImage as error:
            return ref, failed(ref, error.reason, detail(error))
        except MemoryError as error:
            return ref, failed(ref, "out_of_memory", str(error))
        except Exception as error:  # of a decoder or an archive, for one picture of many
            return ref, failed(ref, "undecodable", f"{type(error).__name__}: {error}")

    def _restored(self, opened: Sequence[Opened]) -> Iterator[Restored]:
        """Restore pictures in one pass of the networks.

        Raises:
            UserError: the GPU has not the memory for it.
        """
        pictures = [picture for _, picture in opened if isinstance(picture, Given)]
        try:
            with self.watch("restore"):
                names = [picture.key for picture in pictures]
                faces = iter(self.restorer([picture.pixels for picture in pictures], names))
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU has not the memory for {len(pictures)} faces in one pass; give a smaller "
                f"--batch than {self.restorer.batch} and run the same command again to resume"
            ) from error
        for ref, picture in opened:
            yield (ref, picture, next(faces)) if isinstance(picture, Given) else picture

    def _written(self, restored: Restored) -> Result:
        """Encode and write what a picture became."""
        if isinstance(restored, Result):
            return restored
        ref, picture, face = restored
        with self.watch("encode"):
            outputs = made(picture, face, self.restorer)
        with self.watch("write"):
            files = write_outputs(self.output, ref.key, outputs.pictures, outputs.record)
        return Result(
            key=ref.key,
            bytes=ref.size,
            stamp=ref.stamp,
            files=files,
            faces=outputs.record["faces"],
            notes=outputs.record["notes"],
        )


def batches(opened: Iterable[Opened], size: int) -> Iterator[list[Opened]]:
    """Group pictures by ``size``, for a pass of the networks each."""
    waiting = iter(opened)
    while part := list(islice(waiting, size)):
        yield part


def failed(ref: ImageRef, reason: str, detail: str = "") -> Result:
    """Return the result of a picture that could not be restored."""
    said = sentence(reason, detail)
    return Result(key=ref.key, bytes=ref.size, stamp=ref.stamp, reason=reason, detail=said)
