"""The dry run: what a curation will cost and yield, estimated from a few images."""

import os
import tempfile
import time
from pathlib import Path

from datasets.decoding import encode_png, single_threaded
from datasets.shards import BLOCK
from datasets.sources import ImageRef
from infra.storage import local_path
from pipelines.curate.config import CurateConfig
from pipelines.curate.filters import drop_reason
from pipelines.curate.job import Curation
from pipelines.curate.report import ignored_line
from pipelines.curate.scoring import ScoreImages
from pipelines.jobs.inputs import listed

PROBES = 8  # images, evenly spaced in key order
PROBED_PATCHES = 4  # of an image, evenly spaced; their times and sizes stand for all its patches
PROBE_SECONDS = 20.0
SAMPLE_OVERHEAD = 4 * BLOCK  # two headers, the JSON and padding


def estimate(config: CurateConfig) -> str:
    """Score and encode a few images, and scale the results by their share of the input's bytes.

    Returns:
        Lines for the user. Nothing is written to the output folder.

    Raises:
        UsageError: as the run itself would.
    """
    curation = Curation(config)
    cached = local_path(config.output) / ".curate" / "sources"
    with tempfile.TemporaryDirectory() as temporary:
        cache = cached if cached.is_dir() else Path(temporary)
        listing = listed(config.input, cache).first(config.first).first(config.limit)
        listing.prepare()
        images = listing.images
        device = config.scoring_device
        worker = ScoreImages(config.crop, config.scorer, device, config.max_pixels)
        probe = _Probe(curation, worker)
        start = time.perf_counter()
        for ref in images[:: max(1, len(images) // PROBES)][:PROBES]:
            probe.add(ref)
            if time.perf_counter() - start > PROBE_SECONDS:
                break
    total_bytes = sum(ref.size for ref in images)
    scale = total_bytes / max(1, probe.source_bytes)
    workers = config.workers or os.cpu_count() or 1
    scorers = (config.scorer_gpus or 1) if device == "cuda" else workers
    hours = (probe.score_seconds / scorers + probe.pack_seconds / workers) * scale / 3600
    kept = probe.kept * scale
    rate = probe.candidates / probe.score_seconds if probe.score_seconds else 0.0
    return (
        f"{len(images):,} images ({total_bytes / 1e9:.2f} GB)\n"
        f"{ignored_line(listing.ignored_kinds(), listing.renamed())}"
        f"probed {probe.images} of them, scaled by bytes:\n"
        f"  patches   about {probe.candidates * scale:,.0f}\n"
        f"  kept      about {kept:,.0f} with {curation.scorer.name} at {curation.threshold}\n"
        f"  shards    about {probe.shard_bytes * scale / 1e9:.2f} GB in "
        f"{max(1, round(kept / config.cut.samples_per_shard)):,} files\n"
        f"  scoring   {rate:.3g} patches a second on one worker ({device}), reading and "
        "decoding included\n"
        f"  time      about {hours * 60:,.1f} minutes ({hours:,.1f} hours): {scorers} scoring, "
        f"{workers} packing\n"
        "nothing was written\n"
    )


class _Probe:
    """Adds up the time that a few images take, and the samples and bytes that they yield."""

    def __init__(self, curation: Curation, worker: ScoreImages) -> None:
        single_threaded()
        self.worker = worker
        self.filters = curation.filters()
        self.images = self.candidates = self.source_bytes = 0
        self.kept = self.shard_bytes = self.score_seconds = self.pack_seconds = 0.0

    def add(self, ref: ImageRef) -> None:
        """Open one image, score and encode some of its patches, and count them for all."""
        start = time.perf_counter()
        rows, patches = self.worker.open(ref)
        opening = time.perf_counter() - start
        self.images += 1
        self.source_bytes += ref.size
        self.candidates += len(patches)
        self.score_seconds += opening
        if not patches:
            return
        chosen = range(0, len(patches), -(-len(patches) // PROBED_PATCHES))
        share = len(patches) / len(chosen)
        start = time.perf_counter()
        scored = self.worker.scored([([rows[i] for i in chosen], [patches[i] for i in chosen])])
        self.score_seconds += (time.perf_counter() - start) * share
        kept = [i for i, row in zip(chosen, scored, strict=True) if not self._dropped(row)]
        self.kept += len(kept) * share
        start = time.perf_counter()
        sizes = [len(encode_png(patches[i])) + SAMPLE_OVERHEAD for i in kept]
        self.pack_seconds += opening + (time.perf_counter() - start) * share
        self.shard_bytes += sum(sizes) * share

    def _dropped(self, row: dict[str, object]) -> bool:
        return drop_reason(row, self.filters) is not None
