"""Plots of the pages: what is drawn, where it lies, and what is refused."""

import math
import re
from xml.etree import ElementTree

import pytest

from pipelines.jobs.plots import Axis, Series, plot

X, Y = Axis(label="steps"), Axis(label="error")
HOSTILE = '<script>&"'


def drawn(html: str) -> ElementTree.Element:
    """Return the drawing of a plot, parsed as XML: it is well formed."""
    return ElementTree.fromstring(html[html.rindex("<svg") : html.rindex("</svg>") + len("</svg>")])


def places(html: str) -> list[tuple[float, float]]:
    """Return where the points of a plot lie, in pixels from the left and from above."""
    found = [path.get("transform", "") for path in drawn(html).iter("path")]
    numbers = [re.findall(r"[\d.]+", text) for text in found if text.startswith("translate")]
    return [(float(x), float(y)) for x, y in numbers]


def texts(html: str) -> list[str]:
    """Return the texts of a drawing."""
    return [text.text or "" for text in drawn(html).iter("text")]


def test_points_lie_by_their_values() -> None:
    """Larger values lie further to the right and further up, at equal distances if equally far."""
    one = Series(name="a", xs=[1, 2, 3], ys=[5, 7, 9])
    (x0, y0), (x1, y1), (x2, y2) = places(plot([one], X, Y))

    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert x0 < x1
    assert y0 > y1


def test_a_logarithmic_axis_has_equal_ratios_equally_far_apart() -> None:
    """1, 10 and 100 are at equal distances, and are ticks."""
    html = plot([Series(name="a", xs=[1, 10, 100], ys=[1, 1, 1])], Axis(label="x", is_log=True), Y)
    (x0, _), (x1, _), (x2, _) = places(html)

    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert {"1", "10", "100"} <= {*texts(html)}


def test_points_that_are_not_finite_are_left_out() -> None:
    """A NaN is no point, and nothing is drawn where there is none."""
    assert len(places(plot([Series(name="a", xs=[1, 2], ys=[math.nan, 1])], X, Y))) == 1
    assert plot([Series(name="a", xs=[1], ys=[math.nan])], X, Y) == ""
    assert plot([], X, Y) == ""


def test_error_bars_find_room() -> None:
    """The ends of error bars lie within the axes, and a NaN among them is no bar."""
    one = Series(name="a", xs=[1, 2], ys=[5, 5], low=[0, math.nan], high=[90, math.nan])
    strokes = [path.get("d", "") for path in drawn(plot([one], X, Y)).iter("path")]
    bars = [d for d in strokes if "h6" in d]

    assert len(bars) == 1
    assert all(0 <= float(y) <= 400 for y in re.findall(r"V([\d.]+)", bars[0]))


def test_several_series_have_a_legend_and_a_shape_each() -> None:
    """Series differ in colour and in shape; one alone needs no legend."""
    one, other = (Series(name=name, xs=[1], ys=[y]) for name, y in (("ours", 1), ("theirs", 2)))
    points = [p for p in drawn(plot([one, other], X, Y)).iter("path") if p.get("transform")]

    assert points[0].get("d") != points[1].get("d")
    assert points[0].get("fill") != points[1].get("fill")
    assert "theirs" in plot([one, other], X, Y).partition("<div")[0]
    assert "class" not in plot([one], X, Y)


def test_texts_are_escaped() -> None:
    """A name of a user cannot become a part of the page."""
    one = Series(name=HOSTILE, xs=[1], ys=[1], labels=[HOSTILE])
    html = plot([one, one], Axis(label=HOSTILE), Axis(label=HOSTILE))

    assert "<script" not in html
    assert texts(html).count(HOSTILE) == 4


def test_lists_of_unequal_lengths_are_refused() -> None:
    """A value without its partner is an error of the program that draws."""
    with pytest.raises(ValueError, match="zip"):
        plot([Series(name="a", xs=[1, 2], ys=[1])], X, Y)


def test_a_logarithmic_axis_refuses_what_it_cannot_show() -> None:
    """0 has no logarithm; the message names the axis."""
    with pytest.raises(ValueError, match="hours: 0 has no place on a logarithmic axis"):
        plot([Series(name="a", xs=[0, 1], ys=[1, 2])], Axis(label="hours", is_log=True), Y)
