"""The self-contained page that a job ends with: inline CSS and SVG, pictures as data URIs.

Every function returns a piece of HTML with its text escaped; :func:`page` puts pieces together.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

KEPT, DROPPED, INK, FAINT = "#2a7f62", "#c8553d", "#1c2430", "#d9dee5"
WIDTH = 960  # of every drawing, in CSS pixels

COLOURS = f":root {{ --ink: {INK}; --faint: {FAINT}; --soft: #5a6675; --width: {WIDTH}px; }}"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff;
  max-width: var(--width); margin: 2.5em auto; padding: 0 1.5em; }
h1 { font-size: 1.7em; margin: 0; }
h2 { font-size: 1.15em; margin: 2.2em 0 .6em; }
p.lead { margin: .2em 0 1.5em; color: var(--soft); }
p.note { margin: .4em 0; color: var(--soft); font-size: .93em; }
p.note i { display: inline-block; width: .8em; height: .8em; margin: 0 .4em 0 0; }
p.note span { margin-right: 1.6em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .22em 1.4em .22em 0; text-align: left; vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid var(--faint); }
td { overflow-wrap: anywhere; }
td:first-child { min-width: 7em; }
td.number, th.number { text-align: right; white-space: nowrap; }
td small { display: block; color: var(--soft); font-size: .82em; }
.best { font-weight: 700; }
.second { text-decoration: underline; text-underline-offset: .2em; }
.faint { color: var(--soft); }
.wide { overflow-x: auto; }
.grid { display: grid; gap: 0 2em; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8em, 1fr)); gap: 1em;
  margin: 0; }
dt { color: var(--soft); font-size: .85em; }
dd { margin: 0; font-size: 1.35em; font-weight: 600; font-variant-numeric: tabular-nums; }
.gallery { display: flex; flex-wrap: wrap; gap: 12px; }
figure { margin: 0; width: 150px; }
figure img { width: 150px; height: 150px; display: block; object-fit: contain; }
figcaption { font-size: .78em; line-height: 1.35; overflow-wrap: anywhere; color: var(--soft); }
figcaption b { color: var(--ink); }
.beside { display: flex; flex-wrap: wrap; gap: 4px; margin: 0 0 1.6em; }
.beside p { flex-basis: 100%; margin: 0; overflow-wrap: anywhere; }
.beside figure { width: auto; flex: 1 1 9.5em; }
.beside img { width: 100%; height: auto; }
.grid .beside figure { flex-basis: 5em; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); font-variant-numeric: tabular-nums; }
@media print {
  body { margin: 0; padding: 0; font-size: 11px; print-color-adjust: exact; }
  h2 { break-after: avoid; }
  figure, svg, tr, .beside { break-inside: avoid; }
  .wide { overflow: visible; }
  .gallery figure, .gallery img { width: 106px; }
  .gallery img { height: 106px; }
}
"""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture with the text below it."""

    image: npt.NDArray[np.uint8]
    """RGB uint8 [H, W, 3]."""
    title: str
    """First line below the picture, in bold, such as a score."""
    caption: str
    """Second line below the picture, such as a key."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A value in a table with what is said of it; such a column is set to the right."""

    text: str
    below: str = ""
    """In small print."""
    mark: Literal["best", "second", "faint"] | None = None
    """How it stands out: bold, underlined, or grey."""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """Put a page together from (heading, HTML) sections; empty sections are left out."""
    body = "\n".join(
        (f"<h2>{escape(head)}</h2>\n" if head else "") + html for head, html in sections if html
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{COLOURS}{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}\n</body>\n</html>\n'
    )


def note(text: str) -> str:
    """Return a remark in small print."""
    return f'<p class="note">{escape(text)}</p>'


def facts(values: Mapping[str, str]) -> str:
    """Show a few numbers large, each under its name."""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in values.items()
    )
    return f"<dl>{items}</dl>"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Show a table; columns of numbers are set to the right with as many decimals in each row.

    A table that is wider than the page is moved sideways by itself.
    """
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(tag: str, cells: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{' class=number' * right}>{_inside(cell, exact=not right)}</{tag}>"
            for cell, right in zip(cells, numeric, strict=True)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{line("th", header)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def bars(values: Mapping[str, float], *, unit: str = "", colour: str = DROPPED) -> str:
    """Draw horizontal bars, one a line, each with its value."""
    if not values:
        return ""
    top = max(values.values()) or 1
    texts = {name: f"{_text(value)}{unit}" for name, value in values.items()}
    left, row = 24 + 7 * max(map(len, values)), 26
    space = WIDTH - left - 16 - 8 * max(map(len, texts.values()))
    lines = []
    for number, (name, value) in enumerate(values.items()):
        y, length = number * row, space * value / top
        lines += [
            _label(left - 10, y + 17, name, "end"),
            _box(left, y + 4, length, row - 8, colour),
            _label(left + length + 8, y + 17, texts[name]),
        ]
    said = ", ".join(f"{name} {text}" for name, text in texts.items())
    return _svg(len(values) * row + 4, said, lines)


def histogram(
    scores: npt.NDArray[np.float64], threshold: float, *, higher_is_better: bool, axis: str
) -> str:
    """Draw how many candidates have which score, with the threshold between kept and dropped.

    Args:
        scores: finite scores, any order.
        threshold: one bin edge lies on it, so every bin is wholly kept or wholly dropped.
        higher_is_better: which side is kept.
        axis: name of the score.
    """
    if scores.size == 0:
        return ""
    counts, edges = bins(scores, threshold, higher_is_better=higher_is_better)
    kept = edges[:-1] >= threshold if higher_is_better else edges[1:] <= threshold
    base, left, top = 240, 46, int(counts.max())
    scale = (WIDTH - left - 10) / (edges[-1] - edges[0])

    def across(score: float) -> float:
        return float(left + (score - edges[0]) * scale)

    def up(count: float) -> float:
        return base - (base - 20) * count / top

    lines = []
    for level in round_ticks(0, top, 4):
        if level.is_integer():
            lines.append(f'<path d="M{left} {up(level):.1f}H{WIDTH - 10}" stroke="{FAINT}"/>')
            lines.append(_label(left - 8, up(level) + 4, f"{level:,.0f}", "end"))
    for count, good, (low, high) in zip(counts, kept, pairwise(edges), strict=True):
        colour, title = KEPT if good else DROPPED, f"{low:.2f} to {high:.2f}: {count:,}"
        width = max(1.0, (high - low) * scale - 1)
        lines.append(_box(across(low), up(count), width, base - up(count), colour, title))
    for tick in round_ticks(edges[0], edges[-1]):
        lines.append(_label(across(tick), base + 18, f"{tick:.4g}", "middle"))
    x = across(threshold)
    beside = (x + 6, "start") if x < WIDTH - 140 else (x - 6, "end")
    lines += [
        f'<path d="M{left} {base}H{WIDTH - 10}" stroke="{INK}"/>',
        f'<path d="M{x:.1f} 4V{base}" stroke="{INK}" stroke-dasharray="4 3"/>',
        _label(beside[0], 14, f"threshold {threshold:.4g}", beside[1]),
        _label((left + WIDTH) / 2, base + 38, axis, "middle"),
    ]
    shares = {
        "kept": (int(counts[kept].sum()), KEPT),
        "dropped": (int(counts[~kept].sum()), DROPPED),
    }
    said = ", ".join(f"{count:,} {name}" for name, (count, _) in shares.items())
    return _key(shares) + _svg(
        286, f"histogram of {axis}, threshold {threshold:.4g}: {said}", lines
    )


def bins(
    scores: npt.NDArray[np.float64], threshold: float, *, higher_is_better: bool, count: int = 48
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Count scores in equal bins of which one edge is the threshold; returns (counts, edges).

    A score equal to the threshold is kept, so bins include their worse edge.
    """
    sign = 1 if higher_is_better else -1
    goodness, limit = sign * scores, sign * threshold
    low, high = min(float(goodness.min()), limit), max(float(goodness.max()), limit)
    step = max((high - low) / count, 1e-6 * max(1.0, abs(limit)))
    below, above = int((limit - low) / step) + 1, int((high - limit) / step) + 1
    edges: npt.NDArray[np.float64] = limit + step * np.arange(-below, above + 1.0)
    counts: npt.NDArray[np.int64] = np.histogram(goodness, edges)[0]
    return (counts, edges) if higher_is_better else (counts[::-1], -edges[::-1])


def round_ticks(low: float, high: float, count: int = 8) -> list[float]:
    """Return about ``count`` round numbers between two values: multiples of 1, 2 or 5 tenths."""
    rough = (high - low) / count
    unit = 10.0 ** np.floor(np.log10(rough))
    step = unit * next(m for m in (1, 2, 5, 10) if m * unit >= rough)
    return [float(n * step) for n in range(int(np.ceil(low / step)), int(high // step) + 1)]


def gallery(thumbnails: Sequence[Thumbnail], side: int = 292) -> str:
    """Show pictures in rows, at twice their size on the page so that they stay sharp."""
    figures = "".join(
        f'<figure><img src="{data_uri(item.image, side)}" alt="{escape(item.caption)}">'
        f"<figcaption><b>{escape(item.title)}</b><br>{_breakable(item.caption)}</figcaption></figure>"
        for item in thumbnails
    )
    return f'<div class="gallery">{figures}</div>' if figures else ""


def beside(
    title: str, pictures: Sequence[tuple[str, str]], widest: int, notes: Sequence[str] = ()
) -> str:
    """Show pictures of one thing side by side, as large as the page allows.

    Args:
        title: the line above them.
        pictures: (what it is, data URI) of each.
        widest: width of a picture in CSS pixels at most.
        notes: remarks below them.
    """
    figures = "".join(
        f'<figure style="max-width:{widest}px"><img src="{uri}" alt="{escape(f"{what}: {title}")}">'
        f"<figcaption>{escape(what)}</figcaption></figure>"
        for what, uri in pictures
    )
    remarks = "".join(map(note, notes))
    return f'<div class="beside"><p><b>{_breakable(title)}</b></p>{figures}{remarks}</div>'


def grid(items: Sequence[str], least: int) -> str:
    """Show pieces in as many columns as the page has room for, ``least`` CSS pixels wide each."""
    columns = f"repeat(auto-fill, minmax(min(100%, {least}px), 1fr))"
    return f'<div class="grid" style="grid-template-columns:{columns}">{"".join(items)}</div>'


def data_uri(image: npt.NDArray[np.uint8], side: int) -> str:
    """Encode RGB uint8 [H, W, 3] as a small JPEG inside a URI."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _breakable(text: str) -> str:
    """Let a long key wrap where its parts meet."""
    return re.sub(r"([_/-])", r"\1<wbr>", escape(text))


def _key(shares: Mapping[str, tuple[int, str]]) -> str:
    """Return the legend of a drawing; ``shares`` is {name: (count, colour)}."""
    items = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)} {count:,}</span>'
        for name, (count, colour) in shares.items()
    )
    return f'<p class="note">{items}</p>'


def _svg(height: int, label: str, lines: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(lines)}</svg>'
    )


def _label(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _box(x: float, y: float, width: float, height: float, colour: str, title: str = "") -> str:
    size = f'width="{width:.1f}" height="{height:.1f}"'
    inside = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{colour}">{inside}</rect>'


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Cell) and not isinstance(value, bool)


def _inside(cell: object, *, exact: bool) -> str:
    """Return what stands in a cell of a table."""
    if not isinstance(cell, Cell):
        return escape(_text(cell, exact=exact))
    text = escape(cell.text)
    marked = f'<span class="{cell.mark}">{text}</span>' if cell.mark else text
    return marked + (f"<small>{escape(cell.below)}</small>" if cell.below else "")


def _text(value: object, *, exact: bool = False) -> str:
    """Write a value; ``exact`` leaves a float the digits that it has."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}" if exact else f"{value:,.2f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if _is_number(value) else str(value)
