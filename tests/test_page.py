"""The page is one file, says what it is given, and shows it in a real browser."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.jobs import page as report
from tests.conftest import PATIENCE
from tests.support.browsers import CHROMIUM, needs_chromium
from tests.support.checked_page import CheckedPage

RNG = np.random.default_rng(3)
SCORES = np.concatenate([RNG.normal(20, 8, 300), RNG.normal(55, 10, 120)])


def sample() -> str:
    """Return a page with every kind of section."""
    rng = np.random.default_rng(4)
    pictures = [
        report.Thumbnail(rng.integers(0, 256, (64, 48, 3), dtype=np.uint8), "1.5", "a<b>&c")
        for _ in range(3)
    ]
    return report.page(
        "Title <script>alert(1)</script>",
        "lead & more",
        [
            ("", report.facts({"kept": "12"})),
            ("Scores", report.histogram(SCORES, 40.0, higher_is_better=False, axis="x <y>")),
            ("Reasons", report.bars({"low_quality": 7, "too_small <": 3})),
            ("Table", report.table(["name", "count"], [("a&b", 1234), ("c", 5)])),
            ("Pictures", report.gallery(pictures)),
            ("Empty", ""),
        ],
    )


def test_a_page_is_balanced_and_loads_nothing() -> None:
    """Every picture is inside; no style sheet, script or font comes from elsewhere."""
    page = sample()
    checker = CheckedPage(page)

    assert checker.open == []
    assert len(checker.loads) == 3
    assert all(load.startswith("data:image/jpeg;base64,") for load in checker.loads)
    assert "http" not in page.replace("http-equiv", "")
    assert "<h2>Empty" not in page


def test_text_is_escaped_everywhere() -> None:
    """A file name is not markup."""
    page = sample()

    assert "<script>" not in page
    assert "a<b>" not in page
    assert "a&lt;b&gt;&amp;c" in page
    assert "too_small &lt;" in page


@settings(max_examples=80)
@given(st.lists(st.floats(-50, 150), min_size=1, max_size=60), st.floats(-20, 120), st.booleans())
def test_every_score_is_in_a_bin_on_its_side_of_the_threshold(
    scores: list[float], threshold: float, higher: bool
) -> None:
    """No bin holds both kept and dropped scores, none is lost, equality is kept."""
    values = np.array([*scores, threshold])
    counts, edges = report.bins(values, threshold, higher_is_better=higher)
    kept = edges[:-1] >= threshold if higher else edges[1:] <= threshold

    assert counts.sum() == len(values)
    assert counts[kept].sum() == (values >= threshold if higher else values <= threshold).sum()
    assert threshold in edges
    assert (np.diff(edges) > 0).all()
    assert len(counts) <= 60


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    """An axis has between 3 and 12 numbers."""
    ticks = report.round_ticks(low, low + width)

    assert 3 <= len(ticks) <= 12
    assert all(low - width * 1e-6 <= tick <= low + width * (1 + 1e-6) for tick in ticks)


def test_a_histogram_says_in_words_what_its_colours_mean() -> None:
    """Who cannot tell the colours apart, or hears the page, gets the counts."""
    drawing = report.histogram(SCORES, 40.0, higher_is_better=False, axis="score")
    kept = int((SCORES <= 40).sum())

    assert f"kept {kept}</span>" in drawing
    assert f"{kept} kept, {len(SCORES) - kept} dropped" in drawing


def test_a_histogram_of_nothing_or_of_one_score_is_drawn() -> None:
    """The smallest sets have a report too."""
    assert report.histogram(np.array([]), 3.5, higher_is_better=True, axis="score") == ""
    assert "<svg" in report.histogram(np.array([3.5]), 3.5, higher_is_better=True, axis="score")


def test_numbers_line_up_and_settings_stay_exact() -> None:
    """A column of measurements has two decimals; a setting among words keeps its digits."""
    page = report.table(
        ["name", "value"], [("threshold", 0.001), ("first", None), ("mode", "crop")]
    )
    assert "<td>0.001</td>" in page
    assert "<td>none</td>" in page
    assert "<td class=number>1,234.50</td>" in report.table(["s"], [(1234.5,), (2.0,)])


def test_bars_are_in_proportion() -> None:
    """The longest bar is the largest value; half of it is half as long."""
    svg = report.bars({"a": 10, "b": 5, "c": 0})
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', svg)]

    assert widths[1] == pytest.approx(widths[0] / 2, abs=0.1)
    assert widths[2] == 0


@needs_chromium
def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    """Headless Chromium draws it, histogram colours included."""
    (tmp_path / "page.html").write_text(sample())
    picture = tmp_path / "page.png"
    subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1060,1400"),
            *(f"--screenshot={picture}", f"file://{tmp_path}/page.html"),
        ],
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    for colour in (report.KEPT, report.DROPPED, report.INK):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]

        assert (np.abs(pixels - wanted).max(1) < 8).sum() > 50, colour


def test_a_cell_stands_out_and_has_small_print() -> None:
    """Its text is escaped, and a column of such cells is set to the right."""
    rows = [("psnr", report.Cell("1 <", "[0, 2] &", "best")), ("lpips", report.Cell("-"))]
    page = report.table(["metric", "ours"], rows)

    assert "<th class=number>ours</th>" in page
    assert '<span class="best">1 &lt;</span><small>[0, 2] &amp;</small></td>' in page
    assert "<td class=number>-</td>" in page
