"""The dry run: how long a restoration takes, by the time of one pass of its networks."""

import os
import tempfile
import time
from dataclasses import replace

import numpy as np
import torch

from infra.paths import AnyPath, path_of, read_if_there
from pipelines.restore.config import RestoreConfig
from pipelines.restore.job import Restoration
from pipelines.restore.networks import FaceRestorer
from pipelines.restore.results import by_key, left

REPEATS = 3  # on a GPU, whose first pass chooses kernels


def estimate(config: RestoreConfig) -> str:
    """Restore a grey face on this machine, and scale by the pictures that are left to restore.

    Returns:
        Lines for the user. Nothing is written to the output folder.

    Raises:
        UsageError: as the run itself would.
    """
    job = Restoration(config)
    job.set.check()
    job.claim()
    with tempfile.TemporaryDirectory() as temporary:
        kept: AnyPath = job.state / "sources"
        listing = job.listed(kept if kept.is_dir() else path_of(temporary))
    known = {} if config.overwrite else by_key(read_if_there(job.results) or b"")
    todo = len(left(listing.images, known, job.there()))
    rule = config.rule
    device = rule.device or ("cuda" if torch.cuda.is_available() else "cpu")
    restorer = FaceRestorer(replace(rule, device=device))
    seconds = _seconds(restorer)
    if device == "cuda":
        workers = config.gpus or torch.cuda.device_count()
    else:
        workers = config.workers or max(1, (os.cpu_count() or 1) // rule.threads)
    hours = seconds * todo / min(workers, max(1, todo)) / 3600
    return (
        f"{len(listing.images):,} pictures, {todo:,} of them to restore, by "
        f"{restorer.settings['method']} at {restorer.size} x {restorer.size} pixels\n"
        f"  measured  {seconds:.3g} s a face on one worker ({device}), {restorer.batch} in a pass\n"
        f"  time      about {60 * hours:,.1f} minutes ({hours:,.2f} hours) with {workers} workers"
        f"{', for one face a photograph' if config.whole.whole else ''}\n"
        "nothing was written\n"
    )


def _seconds(restorer: FaceRestorer) -> float:
    """Return the seconds of one face of a pass; on a GPU the fastest, once warm."""
    count = restorer.batch
    faces = [np.full((restorer.size, restorer.size, 3), 128, dtype=np.uint8)] * count
    names = [str(number) for number in range(count)]
    seconds = []
    for _ in range(1 if restorer.device.type == "cpu" else 1 + REPEATS):
        start = time.perf_counter()
        restorer(faces, names)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / count
