"""The table and the page of a restoration job: before and after, failures, what to look at."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.decoding import Pixels, decode
from datasets.sources import ImageRef, Listing, read
from infra.paths import AnyPath
from pipelines.jobs import page
from pipelines.restore.results import Result

TABLE, PAGE = "results.parquet", "report.html"
SHOWN = 24  # pictures on the page
SIDE = 300  # pixels of the longer side of a picture on the page


def table(rows: Sequence[Result]) -> bytes:
    """Encode the table: a row for each picture."""
    columns = {
        "key": [row.key for row in rows],
        "restored": [not row.reason for row in rows],
        "reason": [row.reason for row in rows],
        "detail": [row.detail for row in rows],
        "faces": pa.array([len(row.faces) for row in rows], pa.int32()),
        "notes": [" ".join(row.notes) for row in rows],
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def summary(rows: Sequence[Result], folder: AnyPath) -> str:
    """Say in a few lines what became of the pictures."""
    reasons = Counter(row.reason for row in rows if row.reason)
    lines = [f"restored {len(rows) - reasons.total():,} of {len(rows):,} pictures into {folder}"]
    lines += [f"  {count:,} not: {reason}" for reason, count in sorted(reasons.items())]
    lines.append(f"before and after: {folder / PAGE}")
    return "\n".join(lines) + "\n"


def build(
    listing: Listing, rows: Sequence[Result], folder: AnyPath, settings: Mapping[str, Any]
) -> str:
    """Return the page."""
    done = [(ref, row) for ref, row in zip(listing.images, rows, strict=True) if not row.reason]
    places = sorted({place * len(done) // SHOWN for place in range(SHOWN)}) if done else []
    pictures = [pair(done[place][0], folder) for place in places]
    failures = [[row.key, row.reason, row.detail] for row in rows if row.reason]
    sections = [
        ("", page.facts({"restored": f"{len(done):,}", "failed": f"{len(failures):,}"})),
        ("Before and after", page.gallery(pictures)),
        ("Not restored", page.table(["picture", "reason", "detail"], failures) if failures else ""),
        ("How", page.table(["setting", "value"], [[k, str(v)] for k, v in settings.items()])),
    ]
    return page.page("Restored pictures", str(folder), sections)


def pair(ref: ImageRef, folder: AnyPath) -> page.Thumbnail:
    """Show a picture and what it became side by side."""
    before = _small(decode(read(ref)))
    after = _small(decode((folder / f"{ref.key}.png").read_bytes()))
    height, width = after.shape[:2]
    before = np.asarray(cv2.resize(before, (width, height)), dtype=np.uint8)
    return page.Thumbnail(np.concatenate([before, after], axis=1), ref.key, "before | after")


def _small(pixels: Pixels) -> Pixels:
    factor = SIDE / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    small = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8)
