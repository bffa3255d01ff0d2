"""The self-contained page that a job ends with: inline CSS and SVG, pictures as data URIs.

Every function returns a piece of HTML with its text escaped; :func:`page` puts pieces together.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

KEPT, DROPPED, INK, FAINT = "#2a7f62", "#c8553d", "#1c2430", "#d9dee5"
WIDTH = 960  # of every drawing, in CSS pixels

STYLE = f"""
body {{ font: 15px/1.5 system-ui, sans-serif; color: {INK}; background: #fff;
  max-width: {WIDTH}px; margin: 2.5em auto; padding: 0 1.5em; }}
h1 {{ font-size: 1.7em; margin: 0; }} h2 {{ font-size: 1.15em; margin: 2.2em 0 .6em; }} p.lead {{
margin: .2em 0 1.5em; color: #5a6675; }} p.note {{ margin: .4em 0; color: #5a6675; font-size:
.93em; }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }} th, td {{
padding: .22em 1.4em .22em 0; text-align: left; vertical-align: top; }} th {{ font-weight: 600;
border-bottom: 1px solid {FAINT}; }} td.number, th.number {{ text-align: right; }} dl {{ display:
grid; grid-template-columns: repeat(4, 1fr); gap: 1em; margin: 0; }} dt {{ color: #5a6675;
font-size: .85em; }} dd {{ margin: 0; font-size: 1.35em; font-weight: 600; }} .gallery {{ display:
flex; flex-wrap: wrap; gap: 12px; }} figure {{ margin: 0; width: 146px; }} figure img {{ width:
146px; height: 146px; display: block; }} figcaption {{ font-size: .78em; line-height: 1.35;
overflow-wrap: anywhere; color: #5a6675; }} figcaption b {{ color: {INK}; }} svg {{ display: block;
max-width: 100%; }} svg text {{ font: 12px system-ui, sans-serif; fill: {INK}; }} @media print {{
body {{ margin: 0; }} h2 {{ break-after: avoid; }} figure {{ break-inside: avoid; }} }}
"""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture with what stands below it."""

    image: npt.NDArray[np.uint8]
    """RGB uint8 [H, W, 3]."""
    title: str
    """In bold, such as a score."""
    caption: str
    """Such as a key."""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """Put a page together from (heading, HTML) sections; empty sections are left out."""
    body = "\n".join(
        (f"<h2>{escape(head)}</h2>\n" if head else "") + html for head, html in sections if html
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
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
    """Show a table; numbers are set to the right with thousands marked."""
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(tag: str, cells: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{' class=number' if right else ''}>{escape(_text(cell))}</{tag}>"
            for cell, right in zip(cells, numeric, strict=True)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{line('th', header)}</tr></thead><tbody>{body}</tbody></table>"


def bars(values: Mapping[str, float], *, unit: str = "", colour: str = DROPPED) -> str:
    """Draw horizontal bars, one a line, each with its value."""
    if not values:
        return ""
    top = max(values.values()) or 1
    left, row = 220, 26
    lines = []
    for number, (name, value) in enumerate(values.items()):
        y = number * row
        length = (WIDTH - left - 120) * value / top
        lines += [
            _label(left - 10, y + 17, name, "end"),
            _box(left, y + 4, length, row - 8, colour),
            _label(left + length + 8, y + 17, f"{_text(value)}{unit}"),
        ]
    return _svg(len(values) * row + 4, f"bars: {', '.join(values)}", lines)


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
    counts, edges = bins(scores, threshold)
    height, base, left = 280, 240, 46
    scale = (WIDTH - left - 10) / (edges[-1] - edges[0])
    top = counts.max() or 1

    def across(score: float) -> float:
        return float(left + (score - edges[0]) * scale)

    lines = []
    for count, (low, high) in zip(counts, pairwise(edges), strict=True):
        kept = low >= threshold if higher_is_better else high <= threshold
        width, length = max(1.0, (high - low) * scale - 1), (base - 20) * count / top
        colour, title = KEPT if kept else DROPPED, f"{low:.2f} to {high:.2f}: {count}"
        lines.append(_box(across(low), base - length, width, length, colour, title))
    lines += [
        _label(across(tick), base + 18, f"{tick:.4g}", "middle")
        for tick in round_ticks(edges[0], edges[-1])
    ]
    x = across(threshold)
    beside = (x + 6, "start") if x < WIDTH - 140 else (x - 6, "end")
    lines += [
        f'<path d="M{left} {base}H{WIDTH - 10}" stroke="{INK}"/>',
        f'<path d="M{x:.1f} 4V{base}" stroke="{INK}" stroke-dasharray="4 3"/>',
        _label(beside[0], 14, f"threshold {threshold:.4g}", beside[1]),
        _label(left - 6, 26, f"{top:,}", "end"),
        _label(WIDTH / 2, base + 36, axis, "middle"),
    ]
    return _svg(height, f"histogram of {axis}, threshold {threshold:.4g}", lines)


def bins(
    scores: npt.NDArray[np.float64], threshold: float, count: int = 48
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Count scores in equal bins of which one edge is the threshold; returns (counts, edges)."""
    low = min(float(scores.min()), threshold)
    high = max(float(scores.max()), threshold)
    step = max((high - low) / count, 1e-6 * max(1.0, abs(threshold)))
    below, above = int((threshold - low) / step) + 1, int((high - threshold) / step) + 1
    edges: npt.NDArray[np.float64] = threshold + step * np.arange(-below, above + 1.0)
    counts: npt.NDArray[np.int64] = np.histogram(scores, edges)[0]
    return counts, edges


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
        f"<figcaption><b>{escape(item.title)}</b><br>{escape(item.caption)}</figcaption></figure>"
        for item in thumbnails
    )
    return f'<div class="gallery">{figures}</div>' if figures else ""


def data_uri(image: npt.NDArray[np.uint8], side: int) -> str:
    """Encode RGB uint8 [H, W, 3] as a small JPEG inside a URI."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if _is_number(value) else str(value)
