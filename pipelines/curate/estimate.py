"""The dry run: what a curation will cost and yield, measured on a few images by its own workers."""

import dataclasses
import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets.decoding import encode_png
from datasets.shards import BLOCK
from datasets.sources import ImageRef, read
from infra.paths import AnyPath
from pipelines.curate.config import CurateConfig
from pipelines.curate.filters import drop_reason, score_filters
from pipelines.curate.job import Curation
from pipelines.curate.report import ignored_line
from pipelines.curate.scoring import ScoreImages
from pipelines.jobs.inputs import listed
from pipelines.jobs.stage import Engine, Resources, started

PROBES = 8  # images, evenly spaced in key order
PROBED_PATCHES = 4  # of an image, evenly spaced; their times and sizes stand for all its patches
PROBE_SECONDS = 20.0  # of one worker
SAMPLE_OVERHEAD = 4 * BLOCK  # two headers, the JSON and padding


def estimate(config: CurateConfig, engine: Engine | None = None) -> str:
    """Score and encode a few images, and scale the results by their share of the input's bytes.

    Ray and its workers are started and ended as the job does it, so that this is measured too.

    Args:
        config: the resolved configuration.
        engine: what carries out the units; by default Ray.

    Returns:
        Lines for the user. Nothing is written to the output folder.

    Raises:
        UsageError: as the run itself would.
    """
    loading = time.process_time()  # what this process has taken until here is loading modules
    curation = Curation(config)
    curation.set.check()
    cached = curation.sources
    with tempfile.TemporaryDirectory() as temporary:
        cache: AnyPath = cached if cached.is_dir() else Path(temporary)
        listing = listed(config.input, cache).first(config.first).first(config.limit)
        listing.prepare()
        images = listing.images
        start = time.perf_counter()
        with started(engine, config.workers) as running:
            resources = curation.scoring_resources(running)[0]
            scorers, packers = running.workers(resources), running.workers(Resources())
            probe = _probe(curation, images[:: max(1, len(images) // PROBES)][:PROBES], running)
        busy = probe["seconds"] / min(scorers, max(1, probe["images"]))
        fixed = loading + max(0.0, time.perf_counter() - start - busy)
    total_bytes = sum(ref.size for ref in images)
    scale = total_bytes / max(1, probe["source_bytes"])
    work = (probe["score_seconds"] / scorers + probe["pack_seconds"] / packers) * scale
    kept, seconds = probe["kept"] * scale, fixed + work
    rate = probe["candidates"] / probe["score_seconds"] if probe["score_seconds"] else 0.0
    return (
        f"{len(images):,} images ({total_bytes / 1e9:.2f} GB)\n"
        f"{ignored_line(listing.ignored_kinds(), listing.renamed())}"
        f"probed {probe['images']} of them, scaled by bytes:\n"
        f"  patches   about {probe['candidates'] * scale:,.0f}\n"
        f"  kept      about {kept:,.0f} with {curation.scorer.name} at {curation.threshold}\n"
        f"  shards    about {probe['shard_bytes'] * scale / 1e9:.2f} GB in "
        f"{max(1, round(kept / config.cut.samples_per_shard)):,} files\n"
        f"  scoring   {rate:.3g} patches a second on one worker ({config.scoring_device}), reading "
        "and decoding included\n"
        f"  time      about {seconds / 60:,.1f} minutes ({seconds / 3600:,.1f} hours): {scorers} "
        f"scoring, {packers} packing; {fixed:.0f} seconds of it to start and end Ray\n"
        "nothing was written\n"
    )


def _probe(curation: Curation, refs: Sequence[ImageRef], engine: Engine) -> Counter[str]:
    """Run both stages on a few images; returns the sums of what `ProbeImages` counts."""
    config = curation.config
    arguments = (config, curation.threshold, curation.scorer.higher_is_better)
    units = [{"ref": dataclasses.asdict(ref)} for ref in refs]
    resources = curation.scoring_resources(engine)[0]
    sums: Counter[str] = Counter()
    for result in engine.run("probe", units, ProbeImages, arguments, len(units), resources):
        sums.update(result["counts"])
    for _ in engine.run("idle", [{}], Idle, (), 0):
        pass
    return sums


class Idle:
    """A worker without work: what it takes is what a stage takes to begin and end."""

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Do nothing."""
        return {"done": 0, "seconds": {}}


class ProbeImages:
    """The worker that times a few images, and counts the samples and bytes that they yield.

    Args:
        config: of the job.
        threshold: that the job would use.
        higher_is_better: direction of its scorer.
    """

    def __init__(
        self, config: CurateConfig, threshold: float | None, higher_is_better: bool
    ) -> None:
        device = config.scoring_device
        self.worker = ScoreImages(config.crop, config.scorer, device, config.max_pixels)
        self.filters = score_filters(threshold, higher_is_better=higher_is_better)
        self.decodes_twice = device == "cuda"
        self.spent = 0.0

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Time image ``unit["ref"]``, unless this process has spent `PROBE_SECONDS`."""
        start = time.perf_counter()
        enough = self.spent > PROBE_SECONDS
        counts = {} if enough else self.counts(ImageRef(**unit["ref"]))
        seconds = time.perf_counter() - start
        self.spent += seconds
        return {"done": 1, "seconds": {}, "counts": counts | {"seconds": seconds}}

    def counts(self, ref: ImageRef) -> dict[str, float]:
        """Open an image, score and encode some of its patches, and count them for all."""
        start = time.perf_counter()
        rows, patches = self.worker.open(ref, partial(read, ref))
        opening = time.perf_counter() - start
        chosen = range(0, len(patches), -(-len(patches) // PROBED_PATCHES) or 1)
        share = len(patches) / max(1, len(chosen))
        start = time.perf_counter()
        scored = self.worker.scored([([rows[i] for i in chosen], [patches[i] for i in chosen])])
        scoring = opening + (time.perf_counter() - start) * share
        start = time.perf_counter()
        kept = [i for i, row in zip(chosen, scored, strict=True) if self._is_kept(row)]
        pngs = [encode_png(patches[i]) for i in kept]
        encoding = (time.perf_counter() - start) * share
        start = time.perf_counter()
        for png in pngs * 2:  # of itself and of its shard
            hashlib.sha256(png)
        packing = (time.perf_counter() - start) * share
        return {
            "images": 1,
            "source_bytes": ref.size,
            "candidates": len(patches),
            "kept": len(kept) * share,
            "shard_bytes": sum(len(png) + SAMPLE_OVERHEAD for png in pngs) * share,
            "score_seconds": scoring + encoding * (not self.decodes_twice),
            "pack_seconds": packing + (opening + encoding) * self.decodes_twice,
        }

    def _is_kept(self, row: dict[str, Any]) -> bool:
        return drop_reason(row, self.filters) is None
