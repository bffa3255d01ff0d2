"""The pictures that a metric finds worst: LQ, restored and HQ side by side, and every value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.decoding import Pixels
from datasets.fetching import read_ahead
from datasets.photographs import read_photograph
from datasets.sources import ImageRef
from datasets.unusable import UnusableImage
from models.metrics.catalog import METRICS
from pipelines.evaluate.differences import pooled
from pipelines.evaluate.pairs import mark, names
from pipelines.evaluate.results import Results
from pipelines.evaluate.writing import by_reason, decimals, named, number
from pipelines.jobs import page

SHOWN = 20  # of a method by a metric
MOST = 1600  # pictures on the page; of many methods there are fewer of each
BYTES = 4_500_000  # of all pictures on the page
SIDE, LEAST_SIDE = 480, 64  # pixels of the longer side of a picture on the page
BYTES_A_PIXEL = 0.45  # of a picture on the page, about
SMALLER = 85  # per cent of the side, where pictures together are too large
WIDEST, COLUMN = 240, 340  # CSS pixels of a picture, at most, and of a row of pictures, at least
ROLES = 3  # of a key: LQ, restored, HQ
CRITERIA = {
    "identity": ("deg", "deg_vqfr", "identity_dlib"),
    "LPIPS": ("lpips", "lpips_vgg"),
}
"""By what pictures are shown, with the metrics that tell; the first that was had does."""
BESIDE_LPIPS = "dists"  # shown under its own name where no LPIPS was had

Captioned = Sequence[tuple[str, ImageRef]]
"""Pictures, each with what stands below it."""


@dataclass(frozen=True, slots=True)
class Worst:
    """The worst pictures of a method."""

    method: str
    metric: str
    places: Sequence[int]
    """Of the keys, from the worst on."""
    undefined: Sequence[str]
    """Keys without a value."""


def sections(results: Results) -> list[tuple[str, str]]:
    """Return the sections of the page, as (heading, HTML): those of each method by each metric.

    What stands in the place of a criterion that no metric tells says so.
    """
    lacking, metrics = chosen(results)
    said = [
        (f"Worst by {criterion}", page.note(f"{criterion} is missing. {why}"))
        for criterion, why in lacking.items()
    ]
    methods = results.pairs.methods
    count = max(1, min(SHOWN, MOST // (ROLES * len(methods) * max(1, len(metrics)))))
    found = [worst(results, method, name, count) for name in metrics for method in methods]
    return [*said, *_drawn(results, found)]


def chosen(results: Results) -> tuple[dict[str, str], list[str]]:
    """Choose the metrics that pictures are ranked by.

    Returns:
        Why each criterion that no metric tells is missing, and the metrics.
    """
    had = results.found.digests
    metrics, lacking = list[str](), dict[str, str]()
    for criterion, names_of_it in CRITERIA.items():
        if found := [name for name in names_of_it if name in had]:
            metrics.append(found[0])
        else:
            lacking[criterion] = _why(names_of_it, results)
    if "LPIPS" in lacking and BESIDE_LPIPS in had:
        metrics.append(BESIDE_LPIPS)
    return lacking, metrics


def worst(results: Results, method: str, metric: str, count: int = SHOWN) -> Worst:
    """Rank a method's pictures by a metric; those without a value have no rank."""
    values = results.column(method, metric)
    badness = -values if METRICS[metric].higher_is_better else values
    order = np.argsort(-badness, kind="stable")  # which puts NaN last
    defined = [int(place) for place in order if not np.isnan(values[place])]
    undefined = [key for key, value in zip(results.keys, values, strict=True) if np.isnan(value)]
    return Worst(method, metric, defined[:count], undefined)


def _why(metrics: Sequence[str], results: Results) -> str:
    missing = results.found.missing
    said = by_reason({one: missing.get(one, "not asked for by --metrics") for one in metrics})
    return ". ".join(f"{', '.join(lacking)}: {why}" for why, lacking in said.items())


def _drawn(results: Results, found: Sequence[Worst]) -> list[tuple[str, str]]:
    rows = [[_refs(results, one.method, place) for place in one.places] for one in found]
    shown = [ref for of_one in rows for refs in of_one for _, ref in refs]
    uris, unreadable = _uris(shown)
    return [
        (
            f"Worst {len(one.places)} of {one.method} by {named(one.metric)}",
            _section(results, one, refs, uris, unreadable),
        )
        for one, refs in zip(found, rows, strict=True)
    ]


def _refs(results: Results, method: str, place: int) -> Captioned:
    """Return the pictures of a key, each with what stands below it."""
    key, pairs = results.keys[place], results.pairs
    sources = (("LQ", pairs.lq), (method, pairs.methods[method]), ("HQ", pairs.hq))
    return [(what, refs[key]) for what, refs in sources if refs is not None]


def _section(
    results: Results,
    one: Worst,
    rows: Sequence[Captioned],
    uris: Mapping[str, str],
    unreadable: Mapping[str, str],
) -> str:
    blocks = []
    for rank, (place, refs) in enumerate(zip(one.places, rows, strict=True), start=1):
        marks = [(what, mark(ref)) for what, ref in refs]
        pictures = [(what, uris[name]) for what, name in marks if name in uris]
        notes = [
            f"{what}: cannot be shown, {unreadable[name]}"
            for what, name in marks
            if name in unreadable
        ]
        values = _values(results, one.method, place)
        title = f"{rank}. {results.keys[place]}: {one.metric} {values[one.metric]}"
        others = ", ".join(f"{name} {value}" for name, value in values.items())
        blocks.append(page.beside(title, pictures, WIDEST, [others, *notes]))
    said = ""
    if one.undefined:
        count = len(one.undefined)
        said = page.note(f"{count:,} pictures have no value and no rank: {names(one.undefined)}")
    return said + page.grid(blocks, COLUMN)


def _values(results: Results, method: str, place: int) -> dict[str, str]:
    """Return every value of a picture, as it is written; of metrics that any picture has."""
    found = {}
    for name, column in results.columns(method).items():
        values = pooled(name, column)
        defined = values[~np.isnan(values)]
        if len(defined):
            value = float(values[place])
            found[name] = "none" if np.isnan(value) else number(value, decimals(defined))
    return found


def _uris(refs: Sequence[ImageRef]) -> tuple[dict[str, str], dict[str, str]]:
    """Encode pictures for the page, as large as there is room for all of them.

    Args:
        refs: as often as each is shown.

    Returns:
        Data URIs by the pictures' marks, and why the others cannot be shown.
    """
    side = int((BYTES / (BYTES_A_PIXEL * max(1, len(refs)))) ** 0.5)
    side = min(SIDE, max(LEAST_SIDE, side))
    small: dict[str, Pixels] = {}
    unreadable: dict[str, str] = {}
    for ref, fetch in read_ahead({mark(ref): ref for ref in refs}.values()):
        try:
            small[mark(ref)] = _fitted(read_photograph(fetch()).srgb(), side)
        except UnusableImage as error:  # an LQ picture, which nothing but the page reads
            unreadable[mark(ref)] = str(error)
    while True:
        uris = {name: page.data_uri(pixels, side) for name, pixels in small.items()}
        if sum(len(uris.get(mark(ref), "")) for ref in refs) <= BYTES or side <= LEAST_SIDE:
            return uris, unreadable
        side = max(LEAST_SIDE, SMALLER * side // 100)  # of pictures with more detail than most


def _fitted(pixels: Pixels, side: int) -> Pixels:
    """Reduce a picture whose longer side has more than ``side`` pixels."""
    height, width = pixels.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return pixels
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
