"""The inputs of a job, listed before its eyes: archives that are new take a while."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from datasets.sources import Listing, list_images
from infra.paths import AnyPath
from pipelines.jobs.progress import progress


def listed(inputs: Sequence[str], kept: AnyPath, option: str = "--input") -> Listing:
    """List everything in all inputs, with a line and a progress bar for archives that are new.

    Args:
        inputs: as `list_images` takes them.
        kept: folder of what is kept of archives.
        option: that names the inputs, for the messages.
    """
    return list_images(inputs, kept, _watch, option)


@contextmanager
def _watch(count: int, megabytes: int) -> Iterator[Callable[[int], None]]:
    sys.stderr.write(f"archives to list: {count:,} ({megabytes:,} MB)\n")
    with progress("list MB", megabytes) as advance:
        yield advance
