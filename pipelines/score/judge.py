"""What becomes of each image: a score, or the reason why it has none."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from itertools import islice

from datasets.decoding import MAX_PIXELS, Pixels, decode
from datasets.fetching import Fetch, read_ahead
from datasets.sources import ImageRef
from datasets.unusable import UnusableImage
from infra.ahead import map_ahead
from infra.errors import UserError
from pipelines.jobs.scorers import Quality, QualityScorer
from pipelines.score.table import Row

MOST_FAILURES = 8  # images one after another; then the scorer is at fault and not the images


class Judge:
    """Scores images in batches, such that no image can end the work on the others.

    Args:
        scorer: a loaded scorer.
        batch: images that are scored together, and whose rows come together.
    """

    def __init__(self, scorer: QualityScorer, batch: int) -> None:
        self._scorer = scorer
        self._batch = batch
        self._failures = 0

    def judged(self, refs: Sequence[ImageRef]) -> Iterator[list[Row]]:
        """Yield the rows of the images, a batch at a time, in order.

        Raises:
            UserError: the scorer failed on `MOST_FAILURES` images one after another, whose rows
                were yielded before; or `read` says that no image is to blame.
        """
        threads = min(self._batch, os.cpu_count() or 1)
        opened = map_ahead(_opened, read_ahead(refs), threads=threads)
        while batch := list(islice(opened, self._batch)):
            yield self._rows(batch)
            if self._failures >= MOST_FAILURES:
                raise UserError(
                    f"the scorer failed on {self._failures} images one after another, the last was "
                    f"{batch[-1][0].key!r}; mend what the errors above name and run the same "
                    "command again, which tries these images again"
                )

    def _rows(self, batch: Sequence[tuple[ImageRef, Pixels | Row]]) -> list[Row]:
        outcomes = iter(self._qualities([what for _, what in batch if not isinstance(what, Row)]))
        return [
            what if isinstance(what, Row) else self._row(ref, next(outcomes)) for ref, what in batch
        ]

    def _qualities(self, images: list[Pixels]) -> list[Quality | Exception]:
        """Score images together; one by one where that fails, to find out which one fails."""
        try:
            return list(self._scorer.score([image] for image in images))
        except Exception:  # whatever it is: each image's own error is recorded
            return [self._alone(image) for image in images]

    def _alone(self, image: Pixels) -> Quality | Exception:
        try:
            return next(iter(self._scorer.score([[image]])))
        except Exception as error:  # recorded in the image's row
            return error

    def _row(self, ref: ImageRef, outcome: Quality | Exception) -> Row:
        if isinstance(outcome, Exception):
            self._failures += 1
            return _dropped(ref, "scorer_failed", outcome)
        self._failures = 0
        if math.isnan(outcome.value):
            return _dropped(ref, "unscorable")
        detail = json.dumps(outcome.detail) if outcome.detail else ""
        return _row(ref, score=repr(outcome.value), detail=detail)


def _opened(image: tuple[ImageRef, Fetch]) -> tuple[ImageRef, Pixels | Row]:
    """Decode an image; whatever its bytes or the decoder raise becomes its row."""
    ref, fetch = image
    try:
        return ref, decode(fetch(), MAX_PIXELS)
    except UserError:
        raise
    except UnusableImage as error:
        return ref, _dropped(ref, error.reason, error)
    except MemoryError as error:
        return ref, _dropped(ref, "out_of_memory", error)
    except Exception as error:  # of a decoder or an archive, for one image of many
        return ref, _dropped(ref, "undecodable", error)


def _dropped(ref: ImageRef, reason: str, error: Exception | None = None) -> Row:
    said = f"{type(error).__name__}: {error}" if error else ""
    return _row(ref, drop_reason=reason, detail=" ".join(said.split()))


def _row(ref: ImageRef, **fields: str) -> Row:
    return Row(key=ref.key, bytes=str(ref.size), modified=str(ref.stamp), **fields)
