"""Points and lines over two axes, as inline SVG for `pipelines.jobs.page`.

Series are told apart by colour and by the shape of their points, so that a page that is printed
grey can be read. The colours are those of Okabe and Ito, which the colour-blind can tell apart.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from pipelines.jobs.page import FAINT, INK, round_ticks

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4d4d4d")
SHAPES = (  # around 0, 0, as paths
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "M-3.5 -3.5H3.5V3.5H-3.5Z",
    "M0 -4.5L4.5 3.5H-4.5Z",
    "M0 -5L4.5 0L0 5L-4.5 0Z",
    "M0 4.5L4.5 -3.5H-4.5Z",
)
WIDTH, HEIGHT = 640, 400  # of a plot, in CSS pixels
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 16, 48  # margins, in which ticks and names stand
LETTER = 6.5  # width of a letter of 12 pixels, about
HALO = 'paint-order="stroke" stroke="#fff" stroke-width="3"'  # around a text that crosses lines
PADDING = 0.06  # of the range of values, beyond its ends
DECADES = 3  # of a logarithmic axis, beyond which only powers of ten have a tick


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """What an axis shows."""

    label: str
    """Its name, with the unit and which way is better."""
    is_log: bool = False
    """Whether equal ratios are equally far apart; all values must then be above 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Points of one kind; a point of which a coordinate is not finite is left out."""

    name: str
    """Its name in the legend."""
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] | None = None
    """Lower end of the error bar of every point, NaN for none."""
    high: Sequence[float] | None = None
    """Upper end."""
    labels: Sequence[str] | None = None
    """Text beside every point."""
    is_line: bool = False
    """Whether the points are joined, in their order."""

    def points(self) -> Iterator["Point"]:
        """Yield every point that can be drawn."""
        count = len(self.xs)
        nothing = [math.nan] * count
        columns = (self.low or nothing, self.high or nothing, self.labels or [""] * count)
        for x, y, low, high, label in zip(self.xs, self.ys, *columns, strict=True):
            if math.isfinite(x) and math.isfinite(y):
                has_bar = math.isfinite(low) and math.isfinite(high)
                yield Point(x, y, low if has_bar else y, high if has_bar else y, label)


@dataclass(frozen=True, slots=True)
class Point:
    """A point with its error bar, which is empty where both ends are ``y``."""

    x: float
    y: float
    low: float
    high: float
    label: str


class Scale:
    """From values to places along an axis.

    Args:
        axis: what it shows.
        values: all that must find room on it.
        start: place of its first end, in pixels.
        end: place of its second end.

    Raises:
        ValueError: a logarithmic axis and a value that is not above 0.
    """

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        if axis.is_log and min(values) <= 0:
            raise ValueError(f"{axis.label}: {min(values):g} has no place on a logarithmic axis")
        self.axis, self.start, self.end = axis, start, end
        low, high = self._inner(min(values)), self._inner(max(values))
        around = PADDING * (high - low) or 0.5 * abs(high) or 0.5
        self._low, self._high = low - around, high + around

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        share = (self._inner(value) - self._low) / (self._high - self._low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """Return about ``count`` round values."""
        if not self.axis.is_log:
            return round_ticks(self._low, self._high, count)
        decades = range(math.floor(self._low), math.ceil(self._high) + 1)
        digits = (1, 2, 5) if self._high - self._low < DECADES else (1,)
        found = [digit * 10.0**decade for decade in decades for digit in digits]
        return [tick for tick in found if self._low <= math.log10(tick) <= self._high]

    def _inner(self, value: float) -> float:
        return math.log10(value) if self.axis.is_log else value


def plot(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    width: int = WIDTH,
    height: int = HEIGHT,
    has_legend: bool = True,
) -> str:
    """Draw points and lines, with a legend above them where there are several series.

    Args:
        series: what is drawn, the first below the others.
        x: the axis from left to right.
        y: the axis from below upwards.
        width: of the drawing, in CSS pixels.
        height: of the drawing.
        has_legend: whether it has one; False where :func:`legend` stands once for several plots.

    Returns:
        HTML; "" where there is no point.

    Raises:
        ValueError: see `Scale`; or the lists of a series have unequal lengths.
    """
    drawn = [[*one.points()] for one in series]
    points = [point for one in drawn for point in one]
    if not points:
        return ""
    heights = [value for point in points for value in (point.y, point.low, point.high)]
    across = Scale(x, [point.x for point in points], LEFT, width - RIGHT)
    up = Scale(y, heights, height - BOTTOM, TOP)
    lines = [*_axes(across, up, width, height)]
    for number, (one, found) in enumerate(zip(series, drawn, strict=True)):
        lines += _drawn(one, found, _style(number), across, up)
    said = f"{y.label} against {x.label}: {', '.join(one.name for one in series)}"
    drawing = (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'style="min-width:{min(width, 480)}px" aria-label="{escape(said)}">{"".join(lines)}</svg>'
    )
    named = legend([one.name for one in series]) if has_legend else ""
    return f'{named}<div style="overflow-x:auto">{drawing}</div>'


def _axes(across: Scale, up: Scale, width: int, height: int) -> Iterator[str]:
    base, end = height - BOTTOM, width - RIGHT
    for tick in up.ticks(max(5, height // 60)):
        yield f'<path d="M{LEFT} {up(tick):.1f}H{end}" stroke="{FAINT}"/>'
        yield _text(LEFT - 8, up(tick) + 4, _number(tick), "end")
    for tick in across.ticks(max(3, width // 90)):
        yield f'<path d="M{across(tick):.1f} {base}v5" stroke="{INK}"/>'
        yield _text(across(tick), base + 19, _number(tick), "middle")
    yield f'<path d="M{LEFT} {TOP}V{base}H{end}" stroke="{INK}" fill="none"/>'
    yield _text((LEFT + end) / 2, height - 8, across.axis.label, "middle")
    middle = (TOP + base) / 2
    turned = f'transform="rotate(-90 14 {middle:.1f})"'
    yield _text(14, middle, up.axis.label, "middle", turned)


def _drawn(
    one: Series, points: Sequence[Point], style: tuple[str, str], across: Scale, up: Scale
) -> Iterator[str]:
    colour, shape = style
    if one.is_line:
        for a, b in pairwise(points):
            ends = f"M{across(a.x):.1f} {up(a.y):.1f}L{across(b.x):.1f} {up(b.y):.1f}"
            yield f'<path d="{ends}" stroke="{colour}" stroke-width="2"/>'
    for point in points:
        x, y = across(point.x), up(point.y)
        if point.low != point.high:
            bar = f"M{x:.1f} {up(point.low):.1f}V{up(point.high):.1f}"
            caps = "".join(f"M{x - 3:.1f} {up(e):.1f}h6" for e in (point.low, point.high))
            yield f'<path d="{bar}{caps}" stroke="{colour}"/>'
        said = escape(f"{one.name} {point.label}: {_exact(point)}")
        place = f"translate({x:.1f} {y:.1f})"
        yield f'<path d="{shape}" transform="{place}" fill="{colour}"><title>{said}</title></path>'
        if point.label:
            is_far_right = x + 8 + LETTER * len(point.label) > across.end
            beside = (x - 8, "end") if is_far_right else (x + 8, "start")
            yield _text(beside[0], y - 7, point.label, beside[1], HALO)


def _style(number: int) -> tuple[str, str]:
    """Return the colour and the shape of the points of a series."""
    return COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)]


def legend(names: Sequence[str]) -> str:
    """Name the series of plots in their order, each beside its points; "" for a single one."""
    if len(names) < 2:
        return ""
    items = "".join(
        '<span><svg viewBox="-6 -6 12 12" width="12" height="12" style="display:inline-block" '
        f'aria-hidden="true"><path d="{shape}" fill="{colour}"/></svg> {escape(name)}</span>'
        for name, (colour, shape) in zip(names, map(_style, range(len(names))), strict=True)
    )
    return f'<p class="note">{items}</p>'


def _exact(point: Point) -> str:
    bar = f" [{point.low:.6g}, {point.high:.6g}]" if point.low != point.high else ""
    return f"{point.x:.6g}, {point.y:.6g}{bar}"


def _number(value: float) -> str:
    return f"{value:,.6g}"


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place} {more}>{escape(text)}</text>"
