"""The dry run: what a curation will cost and give, from a probe of a few images."""

import os
import tempfile
import time
from pathlib import Path

from datasets.decoding import decode, encode_png
from datasets.shards import BLOCK
from datasets.sources import ImageRef, list_images, read
from infra.storage import local_path
from pipelines.crop import Box, cut
from pipelines.curate import CurateConfig
from pipelines.filters import Filter, drop_reason
from pipelines.score import ScoreImages

PROBES = 8  # images, evenly spaced in key order
PROBE_SECONDS = 20.0
SAMPLE_OVERHEAD = 3 * BLOCK  # two headers, the JSON and padding


def estimate(config: CurateConfig) -> str:
    """Probe up to `PROBES` images and extrapolate by their share of the input's bytes.

    Returns:
        Lines for the user. Nothing is written to the output folder.

    Raises:
        UsageError: as the run itself would.
    """
    from pipelines.curation import Curation

    curation = Curation(config)
    cached = local_path(config.output) / ".curate" / "sources"
    with tempfile.TemporaryDirectory() as temporary:
        cache = cached if cached.is_dir() else Path(temporary)
        listing = list_images(config.input, cache).first(config.first).first(config.limit)
        images = listing.images
        step = max(1, len(images) // PROBES)
        probe = _Probe(config, curation.filters())
        start = time.perf_counter()
        for ref in images[::step][:PROBES]:
            probe.add(ref)
            if time.perf_counter() - start > PROBE_SECONDS:
                break
    total_bytes = sum(ref.size for ref in images)
    scale = total_bytes / max(1, probe.source_bytes)
    workers = config.workers or os.cpu_count() or 1
    size = probe.shard_bytes * scale
    shards = max(1, round(probe.kept * scale / config.samples_per_shard))
    minutes = probe.seconds * scale / workers / 60
    return (
        f"{len(images):,} images ({total_bytes / 1e9:.2f} GB), {listing.ignored:,} other files\n"
        f"probed {probe.images} of them in {probe.seconds:.1f} s of one core, scaled by bytes:\n"
        f"  patches   about {probe.candidates * scale:,.0f}\n"
        f"  kept      about {probe.kept * scale:,.0f} with {curation.scorer.name} at "
        f"{curation.threshold}\n"
        f"  shards    about {size / 1e9:.2f} GB in {shards:,} files\n"
        f"  time      about {minutes:.1f} minutes on {workers} workers\n"
        "nothing was written\n"
    )


class _Probe:
    """Does to a few images what the job does to all, and counts."""

    def __init__(self, config: CurateConfig, filters: tuple[Filter, ...]) -> None:
        self.rule = config.crop_rule()
        self.max_pixels = config.max_pixels
        self.filters = filters
        self.worker = ScoreImages(self.rule, config.scorer, config.max_pixels)
        self.images = self.candidates = self.kept = self.source_bytes = 0
        self.shard_bytes = self.seconds = 0.0

    def add(self, ref: ImageRef) -> None:
        """Score one image, read it again, and encode one kept patch on behalf of all of them."""
        start = time.perf_counter()
        rows = self.worker.candidates(ref)
        self.images += 1
        self.source_bytes += ref.size
        self.candidates += sum(row["index"] > 0 for row in rows)
        kept = [row for row in rows if drop_reason(row, self.filters) is None]
        self.kept += len(kept)
        if kept:
            image = decode(read(ref), self.max_pixels)
            row = kept[len(kept) // 2]
            box = Box(row["x"], row["y"], row["w"], row["h"])
            encoding = time.perf_counter()
            png = encode_png(cut(image, box, self.rule))
            self.seconds += (time.perf_counter() - encoding) * (len(kept) - 1)
            self.shard_bytes += (len(png) + SAMPLE_OVERHEAD) * len(kept)
        self.seconds += time.perf_counter() - start
