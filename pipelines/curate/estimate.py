"""The dry run: what a curation will cost and yield, measured on a few images by its own workers."""

import tempfile
import time
from pathlib import Path

from infra.paths import AnyPath
from pipelines.curate.config import CurateConfig
from pipelines.curate.job import Curation
from pipelines.curate.probe import PROBES, by_reason, probe, reasons, unit_of
from pipelines.curate.report import ignored_line
from pipelines.jobs.inputs import listed
from pipelines.jobs.stage import Engine, Resources, started


def estimate(config: CurateConfig, engine: Engine | None = None) -> str:
    """Score and encode a few images, and scale the results by their share of the input's bytes.

    Ray and its workers are started and ended as the job does it, so that this is measured too.
    What a first run would keep of archives is in a temporary folder of this machine, where no
    worker of a cluster can open it. Images that are read by it are read here and sent.

    Args:
        config: the resolved configuration.
        engine: what carries out the units; by default Ray.

    Returns:
        Lines for the user. Nothing is written to the output folder.

    Raises:
        UsageError: as the run itself would.
        UserError: none of the few images can be opened.
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
        probed = images[:: max(1, len(images) // PROBES)][:PROBES]
        units = [unit_of(ref, Path(temporary)) for ref in probed]
        start = time.perf_counter()
        with started(engine, config.workers) as running:
            resources = curation.scoring_resources(running)[0]
            scorers, packers = running.workers(resources), running.workers(Resources())
            found = probe(curation, units, running, resources)
        counts = found.counts
        busy = counts["seconds"] / min(scorers, max(1, counts["images"]))
        fixed = loading + max(0.0, time.perf_counter() - start - busy)
    total_bytes = sum(ref.size for ref in images)
    scale = total_bytes / max(1, counts["source_bytes"])
    work = (counts["score_seconds"] / scorers + counts["pack_seconds"] / packers) * scale
    kept, seconds = counts["kept"] * scale, fixed + work
    dropped = by_reason({reason: count * scale for reason, count in found.dropped.items()})
    rate = counts["candidates"] / counts["score_seconds"] if counts["score_seconds"] else 0.0
    return (
        f"{len(images):,} images ({total_bytes / 1e9:.2f} GB)\n"
        f"{ignored_line(listing.ignored_kinds(), listing.renamed())}"
        f"probed {counts['images']} of them{reasons(found.unusable)}, scaled by bytes:\n"
        f"  patches   about {counts['candidates'] * scale:,.0f}\n"
        f"  kept      about {kept:,.0f} with {curation.scorer.name} at {curation.threshold}"
        f"{f'; dropped about {dropped}' if dropped else ''}\n"
        f"  shards    about {counts['shard_bytes'] * scale / 1e9:.2f} GB in "
        f"{max(1, round(kept / config.cut.samples_per_shard)):,} files\n"
        f"  scoring   {rate:.3g} patches a second on one worker ({config.scoring_device}), reading "
        "and decoding included\n"
        f"  time      about {seconds / 60:,.1f} minutes ({seconds / 3600:,.1f} hours): {scorers} "
        f"scoring, {packers} packing; {fixed:.0f} seconds of it to start and end Ray\n"
        "nothing was written\n"
    )
