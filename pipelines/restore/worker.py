"""The worker that restores the pictures of a unit and writes what they became.

Pictures of aligned faces share a pass of the networks. A whole photograph is restored by itself, so
that no more than one is in memory, and its faces share a pass.

A picture that cannot be restored has a result with the reason, and the others go on. Doing a unit
again writes the same files.

Beside a GPU, threads read and decode the next pictures and encode and write the last ones while the
networks compute. On CPUs there is a worker for each core, and every worker does one thing at a
time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from threading import local
from typing import Any, TypeVar

import torch

from datasets.decoding import Pixels
from datasets.fetching import READERS, Fetch, read_ahead
from datasets.sources import ImageRef
from datasets.unusable import UnusableImage
from infra.ahead import map_ahead
from infra.config import from_dict
from infra.errors import UserError
from infra.paths import path_of
from models.faces.find import FaceFinder
from pipelines.jobs.attempts import Attempt, attempt
from pipelines.jobs.stage import Stopwatch
from pipelines.restore.config import RestoreRule, WholeRule
from pipelines.restore.faces import (
    ChosenFace,
    FaceRefusal,
    choose_faces,
    finder_if_installed,
)
from pipelines.restore.given_faces import GivenFaces
from pipelines.restore.networks import FaceRestorer, NotFinite, RestoredFace
from pipelines.restore.outputs import write_outputs
from pipelines.restore.pictures import Given, Made, checked, detail, given, made
from pipelines.restore.reasons import sentence
from pipelines.restore.results import Result
from pipelines.restore.whole import NoFaceRestored, made_whole

DECODERS, WRITERS = 8, 4
"""Threads beside a GPU. At 512 pixels a picture takes 5 ms of a core to decode and 400 to look
where its face lies, and the restored one takes 10 to encode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreSpec:
    """What all units of a job share."""

    rule: RestoreRule
    whole: WholeRule
    output: str
    """The output folder."""
    keep_posterior_mean: bool
    """Write it beside each restored face."""
    notes: str
    """Folder for the notes of `pipelines.jobs.attempts`."""
    session: str
    """Name of the job that is running."""
    model: str
    """Digest of the bundle that the job began with."""
    faces: GivenFaces
    """Of --faces-json: faces of photographs that are not searched."""


Opened = tuple[ImageRef, Given | Result]
"""A picture that is to be restored, or why it cannot be."""
Restored = tuple[ImageRef, Given, RestoredFace] | Result


T = TypeVar("T")


class RestoreImages:
    """Restores pictures of aligned faces, or the faces of whole photographs."""

    def __init__(self, spec: RestoreSpec) -> None:
        self.spec = spec
        self.restorer = FaceRestorer(spec.rule, spec.model)
        self.compiling = self.restorer.compile()
        self.smallest = spec.whole.smallest(self.restorer.size)
        self.output = path_of(spec.output)
        self.is_aligned = self.restorer.bundle.alignment == "ffhq"
        self.finders = local()
        self.watch = Stopwatch()

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Restore the pictures of ``unit["images"]``; returns a result for each."""
        refs = [from_dict(ImageRef, values) for values in unit["images"]]
        folder, spec = path_of(self.spec.notes), self.spec
        with attempt(folder, unit["name"], spec.session, unit["what"]) as begun:
            if begun.is_careful:
                results = [self._alone(ref, begun) for ref in refs]
            else:
                threads = (DECODERS, WRITERS) if self.restorer.device.type == "cuda" else (0, 0)
                results = list(self._together(refs, *threads))
        rows = [asdict(result) for result in results]
        done = {"done": len(refs), "seconds": self.watch.take(), "results": rows}
        return {**done, "compiling": self.compiling}

    def _alone(self, ref: ImageRef, begun: Attempt) -> Result:
        """Restore a picture of a unit that has killed a process; nothing else is under way."""
        if begun.has_killed(ref.key):
            return failed(ref, "crashed")
        with begun.doing(ref.key):
            return next(self._together([ref]))

    def _together(
        self, refs: Sequence[ImageRef], decoders: int = 0, writers: int = 0
    ) -> Iterator[Result]:
        """Restore pictures; yields their results in order."""
        if self.spec.whole.whole:
            yield from map(self._photograph, read_ahead(refs, 1))
            return
        size = self.restorer.batch
        reading = read_ahead(refs, max(READERS, size))
        opened = map_ahead(self._opened, reading, threads=decoders, ahead=2 * size)
        restored = (one for part in batches(opened, size) for one in self._restored(part))
        yield from map_ahead(self._written, restored, threads=writers, ahead=size)

    def _opened(self, read: tuple[ImageRef, Fetch]) -> Opened:
        """Read, decode and check a picture of an aligned face."""
        ref, fetch = read

        def opened() -> Given:
            with self.watch("read"):
                data = fetch()
            with self.watch("decode"):
                size, smallest = self.restorer.size, self.smallest
                picture = given(ref.key, ref.file, data, size, smallest=smallest)
            return self._checked(picture) if self.is_aligned else picture

        return ref, tried(ref, opened)

    def _photograph(self, read: tuple[ImageRef, Fetch]) -> Result:
        """Restore the faces of a photograph and write what it became."""
        ref, fetch = read

        def restored() -> Made:
            with self.watch("read"):
                data = fetch()
            with self.watch("restore"):
                rule = self.spec.whole
                return made_whole(ref.key, ref.file, data, choose, self.restorer, rule)

        def choose(pixels: Pixels) -> list[ChosenFace]:
            faces = self.spec.faces.get(ref.key)
            size = self.restorer.size
            return choose_faces(pixels, self.spec.whole, size, self._finder(), faces)

        done = tried(ref, restored)
        return done if isinstance(done, Result) else self._kept(ref, done)

    def _finder(self) -> FaceFinder | None:
        """Return the finder of this thread: one lets in one thread at a time."""
        if not hasattr(self.finders, "own"):
            self.finders.own = finder_if_installed()
        finder: FaceFinder | None = self.finders.own
        return finder

    def _checked(self, picture: Given) -> Given:
        """Look whether the face is aligned.

        Raises:
            FaceRefusal: it is not.
        """
        with self.watch("check alignment"):
            return checked(picture, self._finder())

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
        except NotFinite:
            if len(opened) > 1:  # each by itself, to find out which
                for one in opened:
                    yield from self._restored([one])
            else:
                yield failed(opened[0][0], "not_finite")
            return
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
            keep_mean = self.spec.keep_posterior_mean
            outputs = made(picture, face, self.restorer, keep_mean=keep_mean)
        return self._kept(ref, outputs)

    def _kept(self, ref: ImageRef, outputs: Made) -> Result:
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


def tried(ref: ImageRef, work: Callable[[], T]) -> T | Result:
    """Do the work of one picture; whatever is wrong with that becomes its result.

    Raises:
        UserError: it is not this picture that is at fault.
    """
    try:
        return work()
    except UserError:
        raise
    except NoFaceRestored as error:
        return replace(
            failed(ref, error.reason, detail(error)), faces=[dict(f) for f in error.faces]
        )
    except UnusableImage as error:
        return failed(ref, error.reason, detail(error))
    except FaceRefusal as error:
        return failed(ref, error.reason, str(error))
    except MemoryError as error:
        return failed(ref, "out_of_memory", str(error))
    except Exception as error:  # of a decoder or an archive, for one picture of many
        return failed(ref, "undecodable", f"{type(error).__name__}: {error}")


def failed(ref: ImageRef, reason: str, detail: str = "") -> Result:
    """Return the result of a picture that could not be restored."""
    said = sentence(reason, detail)
    return Result(key=ref.key, bytes=ref.size, stamp=ref.stamp, reason=reason, detail=said)
