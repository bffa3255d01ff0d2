"""The probe of a dry run: a few images, scored and encoded by workers of the job, and counted."""

import base64
import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from datasets.decoding import encode_png
from datasets.fetching import Fetch
from datasets.shards import BLOCK
from datasets.sources import ImageRef, read
from datasets.unusable import BROKEN, TRANSIENT, UnreadableImage
from infra.errors import UserError
from pipelines.curate.config import CurateConfig
from pipelines.curate.filters import drop_reason, score_filters
from pipelines.curate.job import Curation
from pipelines.curate.scoring import ScoreImages
from pipelines.jobs.stage import Engine, Resources

PROBES = 8  # images, evenly spaced in key order
PROBED_PATCHES = 4  # of an image, evenly spaced; their times and sizes stand for all its patches
PROBE_SECONDS = 20.0  # of one worker
SAMPLE_OVERHEAD = 4 * BLOCK  # two headers, the JSON and padding


def unit_of(ref: ImageRef, temporary: Path) -> dict[str, Any]:
    """Return the unit of a probed image, with its bytes if they are read by help of ``temporary``.

    Its ``sent`` is None, or has the bytes in base 64, the seconds that reading them took, and the
    reason why they cannot be read, which is empty where they can.
    """
    unit = {"ref": dataclasses.asdict(ref), "sent": None}
    if not any(PurePath(p).is_relative_to(temporary) for p in (ref.path, ref.seek_index or "")):
        return unit
    data, reason, start = b"", "", time.perf_counter()
    try:
        data = read(ref)
    except UnreadableImage as error:
        reason = error.reason
    seconds = time.perf_counter() - start
    sent = {"data": base64.b64encode(data).decode(), "reason": reason, "seconds": seconds}
    return unit | {"sent": sent}


def _received(sent: dict[str, Any]) -> bytes:
    """Return the bytes that `unit_of` has read.

    Raises:
        UnreadableImage: it could not.
    """
    if sent["reason"]:
        raise UnreadableImage(sent["reason"])
    return base64.b64decode(sent["data"])


@dataclasses.dataclass(frozen=True, slots=True)
class Unusable:
    """A probed image that gives no patch."""

    reason: str
    """One of `datasets.unusable.REASONS`."""
    image: str
    """Which one, for the user."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What the probed images have shown."""

    counts: Counter[str]
    """Sums of the ``counts`` that `ProbeImages.found` gives."""
    unusable: list[Unusable]
    dropped: Counter[str]
    """Patches by the reason for which they are dropped."""


def probe(
    curation: Curation, units: Sequence[dict[str, Any]], engine: Engine, resources: Resources
) -> Found:
    """Run both stages on a few images.

    Args:
        curation: the job.
        units: of `unit_of`.
        engine: what carries them out.
        resources: of a scoring worker.

    Raises:
        UserError: none of them can be opened.
    """
    config = curation.config
    arguments = (config, curation.threshold, curation.scorer.higher_is_better)
    found = Found(Counter(), [], Counter())
    for result in engine.run("probe", units, ProbeImages, arguments, len(units), resources):
        found.counts.update(result["counts"])
        found.unusable.extend(Unusable(**fields) for fields in result["unusable"])
        found.dropped.update(result["dropped"])
    _refuse_unopened(found)
    for _ in engine.run("idle", [{}], Idle, (), 0):
        pass
    return found


def reasons(unusable: Sequence[Unusable]) -> str:
    """Count images by reason, in brackets after a blank; no text where there are none."""
    said = by_reason(Counter(one.reason for one in unusable))
    return f" ({said})" if said else ""


def by_reason(counts: Mapping[str, float]) -> str:
    """Write counts, rounded, each before its reason; no text where there are none."""
    return ", ".join(f"{count:,.0f} {reason}" for reason, count in sorted(counts.items()))


def _refuse_unopened(found: Found) -> None:
    """Raise a `UserError` if no image could be opened: nothing can be said of the others then."""
    broken = [one for one in found.unusable if one.reason in BROKEN]
    if len(broken) < found.counts["images"]:
        return
    first = min(broken, key=lambda one: one.image)
    remedy = "look at it, or give inputs without such files"
    if first.reason in TRANSIENT:
        remedy = (
            "on a cluster every machine must see the inputs at the same paths, on a disk that all "
            "share or in a bucket, and the user of its workers must be allowed to read them"
        )
    raise UserError(
        f"--dry-run: none of {len(broken)} probed images could be opened"
        f"{reasons(broken)}; the first is {first.image}, {first.reason}: {remedy}"
    )


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
        found: dict[str, Any] = {"counts": {}, "unusable": [], "dropped": {}}
        start = time.perf_counter()
        if self.spent <= PROBE_SECONDS:
            found = self.found(ImageRef(**unit["ref"]), unit["sent"])
        seconds = time.perf_counter() - start
        self.spent += seconds
        return {"done": 1, "seconds": {}, **found, "counts": found["counts"] | {"seconds": seconds}}

    def found(self, ref: ImageRef, sent: dict[str, Any] | None) -> dict[str, Any]:
        """Open an image, score and encode some of its patches, and count them for all.

        Args:
            ref: the image.
            sent: its bytes, as `unit_of` gives them; None reads them here.
        """
        fetch: Fetch = partial(read, ref) if sent is None else partial(_received, sent)
        start = time.perf_counter()
        rows, patches = self.worker.open(ref, fetch)
        opening = time.perf_counter() - start + (sent["seconds"] if sent else 0.0)
        unusable = []
        if not patches:
            place = "" if sent else f", read from {ref.path}"
            image = f"{ref.file} of {ref.origin}{place}"
            unusable.append({"reason": rows[0]["drop_reason"], "image": image})
        chosen = range(0, len(patches), -(-len(patches) // PROBED_PATCHES) or 1)
        share = len(patches) / max(1, len(chosen))
        start = time.perf_counter()
        scored = self.worker.scored([([rows[i] for i in chosen], [patches[i] for i in chosen])])
        scoring = opening + (time.perf_counter() - start) * share
        start = time.perf_counter()
        verdicts = [drop_reason(row, self.filters) for row in scored]
        kept = [i for i, verdict in zip(chosen, verdicts, strict=True) if verdict is None]
        dropped = Counter(verdict for verdict in verdicts if verdict is not None)
        pngs = [encode_png(patches[i]) for i in kept]
        encoding = (time.perf_counter() - start) * share
        start = time.perf_counter()
        for png in pngs * 2:  # of itself and of its shard
            hashlib.sha256(png)
        packing = (time.perf_counter() - start) * share
        counts = {
            "images": 1,
            "source_bytes": ref.size,
            "candidates": len(patches),
            "kept": len(kept) * share,
            "shard_bytes": sum(len(png) + SAMPLE_OVERHEAD for png in pngs) * share,
            "score_seconds": scoring + encoding * (not self.decodes_twice),
            "pack_seconds": packing + (opening + encoding) * self.decodes_twice,
        }
        return {
            "counts": counts,
            "unusable": unusable,
            "dropped": {reason: count * share for reason, count in dropped.items()},
        }
