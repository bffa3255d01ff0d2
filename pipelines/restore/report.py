"""The tables and the page of a restoration job: before and after, failures, what to look at."""

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.decoding import Pixels, encode_png
from datasets.photographs import read_photograph
from datasets.sources import ImageRef, Listing, read
from datasets.unusable import UnusableImage
from infra.config import flat
from infra.paths import AnyPath
from models.bundle_facts import BundleConfig
from pipelines.jobs import page
from pipelines.restore.outputs import POSTERIOR_MEAN
from pipelines.restore.results import Result

TABLE, FACES, PAGE = "results.parquet", "faces.parquet", "report.html"
SHOWN = 24  # pictures on the page, evenly spaced
SIDE = 480  # pixels of the longer side of a picture on the page
EXACT = 160  # pixels of the longer side up to which a picture is shown without loss
ENLARGED = 3  # times at most that the page shows a small picture larger than it is
BYTES = 4_500_000  # of the pictures on the page; of large ones there are fewer
SPREAD = "spread of the samples, in levels: black 0, red 5, yellow 10, white 15"
LINES = 200  # of a table on the page
FACE = (("key", pa.string()), ("number", pa.int32()), ("outcome", pa.string()))
LONG = {"landmarks"}  # of a face, which are in its JSON and in no table


def tables(rows: Sequence[Result]) -> dict[str, bytes]:
    """Encode the tables by name: a row for each picture, and a row for each of their faces."""
    pictures = {
        "key": [row.key for row in rows],
        "restored": [not row.reason for row in rows],
        "reason": [row.reason for row in rows],
        "detail": [row.detail for row in rows],
        "faces": pa.array([len(row.faces) for row in rows], pa.int32()),
        "notes": pa.array([row.notes for row in rows], pa.list_(pa.string())),
    }
    faces = [{"key": row.key, **flat(face)} for row in rows for face in row.faces]
    names = dict.fromkeys(name for face in faces for name in face if name not in LONG)
    columns = {name: pa.array([face.get(name) for face in faces], kind) for name, kind in FACE}
    for name in names:
        columns.setdefault(name, pa.array([face.get(name) for face in faces]))
    return {TABLE: _parquet(pictures), FACES: _parquet(columns)}


def _parquet(columns: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer, compression="zstd")
    return buffer.getvalue()


def summary(rows: Sequence[Result], folder: AnyPath) -> str:
    """Say in a few lines what became of the pictures."""
    reasons = Counter(row.reason for row in rows if row.reason)
    lines = [f"restored {len(rows) - reasons.total():,} of {len(rows):,} pictures into {folder}"]
    lines += [f"  {count:,} not: {reason}" for reason, count in sorted(reasons.items())]
    noted = sum(bool(row.notes) for row in rows)
    lines += [f"  {noted:,} with a note, in {PAGE} and {TABLE}"] if noted else []
    lines.append(f"before and after: {folder / PAGE}")
    return "\n".join(lines) + "\n"


def build(
    listing: Listing,
    rows: Sequence[Result],
    folder: AnyPath,
    settings: Mapping[str, Any],
    bundle: BundleConfig,
    references: Mapping[str, ImageRef],
) -> str:
    """Return the page.

    Args:
        listing: the pictures of the inputs.
        rows: what became of each.
        folder: the output folder.
        settings: everything that the pictures depend on.
        bundle: the model's.
        references: HQ of the pictures, by key; of any of them.
    """
    done = [(ref, row) for ref, row in zip(listing.images, rows, strict=True) if not row.reason]
    failed = [[row.key, f"{row.reason}: {row.detail}"] for row in rows if row.reason]
    noted = [[row.key, note] for row in rows for note in row.notes]
    counts = {"restored": f"{len(done):,}", "not restored": f"{len(failed):,}"}
    sections = [
        ("", page.facts(counts)),
        ("Not restored", _table(["picture", "why"], failed)),
        ("Notes", _table(["picture", "note"], noted)),
        ("Before and after", "".join(_compared(done, folder, references))),
        ("How", _table(["setting", "value"], [[k, str(v)] for k, v in settings.items()])),
        ("Model", _table(["fact", "value"], list(facts(bundle).items()))),
    ]
    return page.page("Restored pictures", str(folder), sections)


def facts(bundle: BundleConfig) -> dict[str, str]:
    """Return what is known of a model, by the dotted names of its configuration.

    The text of whoever hands it on is left out: it is Markdown of many lines, for the model card.
    """
    known = flat({"method": bundle.method, "digest": bundle.digest, **asdict(bundle)})
    del known["training.about"]
    return {name: str(value) for name, value in known.items() if value not in (None, {}, "")}


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    more = len(rows) - LINES
    said = page.note(f"and {more:,} more, in {TABLE}") if more > 0 else ""
    return page.table(header, rows[:LINES]) + said


def _compared(
    done: Sequence[tuple[ImageRef, Result]], folder: AnyPath, references: Mapping[str, ImageRef]
) -> Iterator[str]:
    """Show some pictures and what they became side by side, as far as the page has room."""
    room = BYTES
    for place in sorted({place * len(done) // SHOWN for place in range(SHOWN)} if done else ()):
        ref, row = done[place]
        pictures = list(_pictures(ref, row, folder, references.get(row.key)))
        uris = [(what, _uri(_fitted(pixels))) for what, pixels in pictures]
        room -= sum(len(uri) for _, uri in uris)
        if room < 0:
            return
        widest = min(max(pixels.shape[1] for _, pixels in pictures) * ENLARGED, SIDE)
        yield page.beside(row.key, uris, widest, row.notes)


def _pictures(
    ref: ImageRef, row: Result, folder: AnyPath, reference: ImageRef | None
) -> Iterator[tuple[str, Pixels]]:
    """Yield what is there: picture, posterior mean, what it became, HQ, map of the spread."""
    after = shown((folder / f"{row.key}.png").read_bytes())
    before = _as_large(ref, after)
    if before is not None:
        yield "input", before
    if f"{row.key}.{POSTERIOR_MEAN}.png" in row.files:
        yield "posterior mean", shown((folder / f"{row.key}.{POSTERIOR_MEAN}.png").read_bytes())
    yield "restored", after
    if reference is not None and (hq := _as_large(reference, after)) is not None:
        yield "HQ", hq
    if (box := largest(row)) and before is not None:
        yield "its largest face, input", _cut(before, box)
        yield "restored", _cut(after, box)
    spread = f"{row.key}.spread.png"
    if spread in row.files:
        yield SPREAD, shown((folder / spread).read_bytes())


def _as_large(ref: ImageRef, other: Pixels) -> Pixels | None:
    """Read a picture in another's size; None if it cannot be read, now or any more."""
    try:
        return _resized(shown(read(ref)), other.shape[1], other.shape[0])
    except UnusableImage:
        return None


def shown(data: bytes) -> Pixels:
    """Decode a picture as RGB uint8 [H, W, 3], whether or not it has transparent pixels."""
    return read_photograph(data).srgb()


def largest(row: Result) -> list[float] | None:
    """Return the box of the largest restored face of a photograph: left, top, right, bottom."""
    boxes = [face["box"] for face in row.faces if face["outcome"] == "restored" and "box" in face]
    return max(boxes, key=lambda box: box[2] - box[0], default=None)


def _cut(pixels: Pixels, box: Sequence[float]) -> Pixels:
    """Cut out a box with a fifth of its side around it, as far as there is a picture."""
    left, top, right, bottom = box
    around = (right - left) / 5
    rows = slice(max(0, round(top - around)), round(bottom + around))
    columns = slice(max(0, round(left - around)), round(right + around))
    return np.ascontiguousarray(pixels[rows, columns])


def _fitted(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    factor = min(1.0, SIDE / max(height, width))
    return _resized(pixels, max(1, round(width * factor)), max(1, round(height * factor)))


def _resized(pixels: Pixels, width: int, height: int) -> Pixels:
    way = cv2.INTER_AREA if width < pixels.shape[1] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=way), dtype=np.uint8)


def _uri(pixels: Pixels) -> str:
    if max(pixels.shape[:2]) > EXACT:
        return page.data_uri(pixels, SIDE)
    return f"data:image/png;base64,{base64.b64encode(encode_png(pixels)).decode()}"
