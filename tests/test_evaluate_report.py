"""The page and the lines of an evaluation: what they say, mark, show, and do not claim."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import BudgetExceeded
from pipelines.evaluate import job, report, worst
from pipelines.evaluate.results import Results
from pipelines.evaluate.summary import Summary, Value, encoded, read_summary
from pipelines.evaluate.writing import by_reason, decimals, written
from tests.support.browsers import chromium, needs_chromium
from tests.support.checked_page import CheckedPage
from tests.support.evaluate_jobs import evaluate, write_pictures
from tests.support.training_sets import write_lpips

HOSTILE = 'a<i>&"'
SIDE, LARGE, COUNT = 32, 161, 22
BROKEN = ("face-2", "face-3", "face-4")  # LQ pictures, more than are none of the worst
METRICS = ("psnr", "ms_ssim", "lpips", "brisque")


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """An evaluation, as its page was made of."""

    folder: Path
    summary: Summary
    results: Results

    @property
    def html(self) -> str:
        """Return the page."""
        return (self.folder / "report.html").read_text()

    @property
    def text(self) -> str:
        """Return what is there to read."""
        return CheckedPage(self.html).text

    def table(self, heading: str) -> dict[str, list[str]]:
        """Return the rows of the table below a heading, by their first cell, as HTML."""
        part = self.html.split(f"<h2>{heading}</h2>")[1].partition("</table>")[0]
        rows = re.findall(r"<tr>(.*?)</tr>", part)[1:]
        cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
        return {first: others for first, *others in cells}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write LPIPS with weights from a seed."""
    return write_lpips(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def hq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write HQ pictures, one with a name that is markup."""
    return noisy(tmp_path_factory.mktemp("sets") / "any", "hq", 0)


def noisy(hq: Path, name: str, noise: float) -> Path:
    """Write a folder of pictures beside another, all small but the first, whose name is markup."""
    folder = write_pictures(hq.parent / name, COUNT, noise=noise, side=SIDE)
    write_pictures(folder, 1, noise=noise, side=LARGE)
    (folder / "face-0.png").rename(folder / f"{HOSTILE}.png")
    return folder


def evaluated(output: Path, methods: Mapping[str, object], **fields: object) -> Evaluated:
    """Evaluate, and keep what the page is made of."""
    kept: list[tuple[Results, Summary]] = []
    with pytest.MonkeyPatch.context() as patch:
        build = report.build

        def watched(results: Results, summary: Summary) -> str:
            kept.append((results, summary))
            return build(results, summary)

        patch.setattr(job.report, "build", watched)
        evaluate(output, methods, **{"metrics": METRICS, **fields})
    return Evaluated(output, kept[0][1], kept[0][0])


@pytest.fixture(scope="module")
def done(hq: Path, weights: Path) -> Evaluated:
    """Evaluate three methods, of which two are equally good."""
    poor = noisy(hq, "poor", 20)
    keys = [path.stem for path in sorted(hq.iterdir())]
    table = pa.table({"key": keys, HOSTILE: [*range(COUNT)], "kernel": [41] * COUNT})
    pq.write_table(table, hq.parent / "degradations.parquet")
    lq = noisy(hq, "lq", 40)
    for name in BROKEN:
        (lq / f"{name}.png").write_bytes(b"no picture")
    return evaluated(
        hq.parent / "out",
        {HOSTILE: noisy(hq, "good", 4), "same": noisy(hq, "same", 4), "poor": poor},
        reference=hq,
        lq=lq,
        weights=weights,
        degradations=hq.parent / "degradations.parquet",
    )


def test_the_page_is_whole_and_loads_nothing(done: Evaluated) -> None:
    """Pictures are inside, and nothing comes from elsewhere; all tags are closed."""
    page = CheckedPage(done.html)

    assert page.open == []
    assert page.loads
    assert all(load.startswith("data:image/jpeg;base64,") for load in page.loads)
    assert "http" not in done.html.replace("https://", "").replace("http-equiv", "")
    assert not re.search(r"url\(|@import|<link|<script", done.html)


def test_texts_of_users_are_escaped(done: Evaluated) -> None:
    """Names of methods, keys and parameters are no markup, and are read as they are."""
    assert "<i>&" not in done.html
    assert f"--restored {HOSTILE}" in done.text
    assert f"By severity: {HOSTILE}" in done.text
    assert f"{HOSTILE}: lpips" in done.text.replace("a<wbr>", "a")


def test_sections_come_in_the_order_of_a_readers_questions(done: Evaluated) -> None:
    """What, how good, how sure, when, where it goes wrong, and what it depends on."""
    headings = re.findall(r"<h2>(.*?)</h2>", done.html)

    assert [one.partition(" ")[0] for one in headings if not one.startswith("Worst")] == [
        "What",
        "Notes",
        "Values",
        "Differences",
        "By",
        "What",
        "How",
    ]


def test_every_value_has_its_interval(done: Evaluated) -> None:
    """The table has what summary.json has, with equally many decimals in a row."""
    values = {name: one.values["lpips"] for name, one in done.summary.methods.items()}
    places = decimals(one.value for one in values.values())

    for value, cell in zip(values.values(), done.table("Values")["lpips ↓"], strict=True):
        shown = [float(number) for number in re.findall(r"\d+\.\d+", cell)]
        assert shown == [round(x or 0, places) for x in (value.value, value.low, value.high)]


def test_a_tie_has_no_best(done: Evaluated) -> None:
    """Equal methods are not marked, though one of them comes first; nor is a second."""
    assert not re.search('class="(best|second)"', done.html)
    assert "*" not in report.as_text(done.summary, done.folder).replace("* the best", "")


@pytest.mark.parametrize("order", [("good", "fair", "poor"), ("poor", "good", "fair")])
def test_clear_differences_are_marked(order: tuple[str, ...], hq: Path, tmp_path: Path) -> None:
    """The best is bold and the second underlined, in whatever order methods are given."""
    noise = {"good": 4, "fair": 10, "poor": 20}
    methods = {name: noisy(hq, name + order[0], noise[name]) for name in order}
    found = evaluated(tmp_path / "out", methods, reference=hq, metrics=("psnr",))

    cells = dict(zip(order, found.table("Values")["psnr ↑"], strict=True))
    assert {name: re.findall('class="(.*?)"', cell) for name, cell in cells.items()} == {
        "good": ["best"],
        "fair": ["second"],
        "poor": [],
    }
    starred = re.search(r"psnr .*", report.as_text(found.summary, tmp_path))
    assert starred is not None
    assert starred[0].count("*") == 1


def test_differences_are_those_from_the_best_value(done: Evaluated) -> None:
    """The sign is that of the method minus the best; what is not clear is grey."""
    row = done.table("Differences from the best")["psnr ↑"]
    cells = dict(zip(done.summary.methods, row, strict=True))
    best = next(name for name, cell in cells.items() if cell == "best value")
    tied = next(name for name in (HOSTILE, "same") if name != best)
    difference = done.summary.difference("psnr", "poor", best)

    assert difference is not None
    assert difference.value < 0
    assert cells["poor"].startswith(f"{difference.value:+.3f}"[:5])
    assert 'class="faint"' not in cells["poor"]
    assert 'class="faint"' in cells[tied]


def test_a_difference_is_known_from_both_sides(done: Evaluated) -> None:
    """The second minus the first is the negative, with the ends of the interval exchanged."""
    one = done.summary.difference("psnr", "poor", "same")
    other = done.summary.difference("psnr", "same", "poor")

    assert one is not None
    assert other is not None
    assert (other.value, other.low, other.high) == (-one.value, -one.high, -one.low)
    assert other.turned() == one
    assert done.summary.difference("psnr", "poor", "unheard of") is None


def test_undefined_values_are_counted_and_said(done: Evaluated) -> None:
    """MS-SSIM needs 161 pixels, which one picture has: its value is no mean of all."""
    said = f"ms_ssim: not defined for {COUNT - 1} of {COUNT} pictures of poor; its value is that of"

    assert said in report.as_text(done.summary, done.folder)
    assert said in done.text
    assert f"; {COUNT - 1} not defined" in done.table("Values")["ms_ssim ↑"][2]
    assert any("; n = 1" in cell for cell in done.table("Differences from the best")["ms_ssim ↑"])


def test_severities_are_drawn_for_every_metric(done: Evaluated) -> None:
    """A plot for each metric, with a point for each third and method that have a value."""
    part = done.html.split("<h2>By severity")[1].partition("<h2>")[0]
    drawn = re.findall(r'aria-label="(\w+) . against', part)

    assert drawn == [*METRICS]
    assert part.count("<title>") == (3 * 3 + 1) * len(done.summary.methods)
    assert "By severity: kernel" not in done.html


def test_the_worst_are_ranked_by_lpips(done: Evaluated) -> None:
    """Twenty of each method, from the worst on, with LQ, restored and HQ beside each other."""
    part = done.html.split("<h2>Worst 20 of poor by lpips")[1].partition("<h2>")[0]
    text = CheckedPage(f"<h2>{part}").text
    said = re.findall(r"^(\d+)\. (.+?): lpips ([\d.]+)$", text, re.MULTILINE)
    values = dict(zip(done.results.keys, done.results.column("poor", "lpips"), strict=True))
    expected = sorted(values, key=lambda key: -values[key])[:20]

    assert [int(rank) for rank, *_ in said] == [*range(1, 21)]
    assert [key for _, key, _ in said] == expected
    unreadable = len({*BROKEN} & {*expected})
    assert unreadable > 0
    assert part.count("<img") == 3 * 20 - unreadable
    assert part.count("LQ: cannot be shown") == unreadable
    assert f"brisque {done.results.column('poor', 'brisque').max():.2f}"[:9] in done.text


def test_a_picture_s_value_has_the_unit_of_the_mean(tmp_path: Path) -> None:
    """The distance from the posterior mean is shown in levels, though its squares are averaged."""
    mean, ours = (write_pictures(tmp_path / str(x), noise=x) for x in (0, 30))
    metrics = ("indrmse", "indrmse_pmrf")
    done = evaluated(tmp_path / "out", {"ours": ours}, posterior_mean=mean, metrics=metrics)
    authors, pmrf = (done.results.column("ours", name)[0] for name in metrics)
    shown = float(worst._values(done.results, "ours", 0)["indrmse_pmrf"])

    assert pmrf == pytest.approx((255 * authors) ** 2)
    assert shown == pytest.approx(255 * authors, rel=1e-2)


def test_identity_that_was_not_measured_is_said_to_be_missing(done: Evaluated) -> None:
    """Nothing takes its place, and nobody has to guess why."""
    part = done.html.split("<h2>Worst by identity</h2>")[1].partition("<h2>")[0]

    said = "identity is missing. deg, deg_vqfr, identity_dlib: not asked for by --metrics"
    assert said in part
    assert "<img" not in part


def test_pictures_without_a_value_have_no_rank(done: Evaluated) -> None:
    """They are listed by name, and are none of the worst."""
    found = worst.worst(done.results, "poor", "ms_ssim")

    assert [done.results.keys[place] for place in found.places] == [HOSTILE]
    assert len(found.undefined) == COUNT - 1


def test_the_worst_are_the_lowest_where_more_is_better(done: Evaluated) -> None:
    """Of PSNR the lowest values come first."""
    found = worst.worst(done.results, "poor", "psnr")
    values = done.results.column("poor", "psnr")

    assert len(found.places) == worst.SHOWN
    assert values[found.places[0]] == values.min()
    assert (np.diff(values[[*found.places]]) >= 0).all()


@pytest.mark.parametrize(
    ("had", "headings"),
    [
        (["deg", "identity_dlib", "lpips"], ["Worst by deg", "Worst by lpips"]),
        (["deg_vqfr", "lpips_vgg"], ["Worst by deg_vqfr", "Worst by lpips_vgg"]),
        (["identity_dlib", "dists"], ["LPIPS", "Worst by identity_dlib", "Worst by dists"]),
        ([], ["identity", "LPIPS"]),
    ],
)
def test_a_ranking_carries_the_name_of_its_metric(
    had: list[str], headings: list[str], done: Evaluated
) -> None:
    """A stand-in is never called by another's name, and DISTS is not LPIPS."""
    found = dataclasses.replace(done.results.found, digests=dict.fromkeys(had, ""), missing={})
    lacking, metrics = worst.chosen(dataclasses.replace(done.results, found=found))

    assert [*lacking, *(f"Worst by {name}" for name in metrics)] == headings


def test_pictures_share_the_room_of_the_page(
    done: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are smaller where there are many, and together no more than the page has room for."""

    def size() -> int:
        drawn = "".join(html for _, html in worst.sections(done.results))
        return sum(map(len, CheckedPage(drawn).loads))

    whole = size()
    monkeypatch.setattr(worst, "LEAST_SIDE", 8)
    monkeypatch.setattr(worst, "BYTES", whole * 3 // 4)
    less = size()

    assert 0 < less <= whole * 3 // 4


def test_of_many_methods_each_has_a_line(done: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the terminal and the page; side by side they would be wider than both."""
    few = report.as_text(done.summary, done.folder).splitlines()
    assert few[0].split()[:3] == ["n", "=", "22"]
    assert few[0].split()[-2:] == ["same", "poor"]
    value = re.search(r"psnr ↑ .*", "\n".join(few))
    assert value

    monkeypatch.setattr(report, "ACROSS", 2)
    many = report.as_text(done.summary, done.folder).splitlines()
    assert many[0].split()[3:5] == ["psnr", "↑"]
    (poor,) = (line for line in many if line.startswith("poor"))
    assert value[0].split("  ")[-1].strip() in poor
    page = report.build(done.results, done.summary)
    assert "<th>method</th><th class=number>psnr ↑</th>" in page


def test_of_many_methods_fewer_pictures_are_shown(
    done: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page stays small enough to be sent, and a heading says how many it shows."""
    monkeypatch.setattr(worst, "MOST", 3 * 3 * 7)
    headings = [heading for heading, _ in worst.sections(done.results) if " of " in heading]

    assert headings == [f"Worst 7 of {name} by lpips ↓" for name in done.summary.methods]


def with_sets(summary: Summary, values: Mapping[str, float]) -> Summary:
    """Add the values of a distance of whole sets, as it has none without weights of 95 MB."""
    methods = {}
    for name, one in summary.methods.items():
        print_ = dataclasses.replace(one.values["lpips"].fingerprint, metric="fid")
        value = Value(
            value=values[name], fingerprint=print_, note="a Frechet distance of 22 images"
        )
        methods[name] = dataclasses.replace(one, values={**one.values, "fid": value})
    return dataclasses.replace(summary, methods=methods)


def test_distances_without_intervals_have_no_best(done: Evaluated) -> None:
    """The page and the terminal say why, and what the number of pictures means."""
    summary = with_sets(done.summary, {HOSTILE: 1.0, "same": 50.0, "poor": 200.0})

    assert report.best_and_second(summary, "fid") == {}
    for said in (report.as_text(summary, done.folder), report.build(done.results, summary)):
        assert "fid: a Frechet distance of 22 images" in said
        assert "fid: no method is marked as the best, because a distance of whole sets" in said


def test_fingerprints_stand_once(done: Evaluated) -> None:
    """A row for each metric; what all share is said below the table; digests are shortened."""
    rows = done.table("What the values depend on")
    fingerprint = done.summary.methods["same"].values["lpips"].fingerprint

    assert [*rows] == ["psnr", "ms_ssim", "lpips", "brisque"]
    assert fingerprint.weights[:12] in rows["lpips"]
    assert f"n {COUNT}, device cpu" in done.text


def test_missing_metrics_have_a_line_for_each_file(
    done: Evaluated, hq: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Metrics of one network lack one file; it is said once, on the page and in the terminal."""
    names = ("psnr", "fid", "fid_legacy", "fid_dinov2", "mmd_dinov2")
    with pytest.raises(BudgetExceeded):
        evaluate(tmp_path / "out", {"same": hq}, reference=hq, metrics=names, weights=tmp_path)
    found = Evaluated(tmp_path / "out", done.summary, done.results)

    assert [*found.table("Missing metrics")] == ["fid, fid_legacy", "fid_dinov2, mmd_dinov2"]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("missing\t")]
    assert [line.split("\t")[1] for line in lines] == [*found.table("Missing metrics")]
    assert "Differences from the best" not in found.html  # of one method
    assert report.MARKED not in found.text


def test_the_summary_that_is_read_is_the_one_that_was_written(done: Evaluated) -> None:
    """Through JSON nothing is lost, and the page made of it is the same."""
    found = read_summary(done.folder)

    assert encoded(found) == encoded(done.summary)
    assert report.build(done.results, found) == done.html
    assert report.as_text(found, done.folder) == report.as_text(done.summary, done.folder)


@given(st.lists(st.floats(1e-4, 1e6), min_size=1))
@settings(max_examples=50)
def test_the_largest_value_of_a_row_has_four_digits(values: list[float]) -> None:
    """Unless they are more than six decimals, or all of them lie before the point."""
    text = f"{max(values):.{decimals(values)}f}"
    digits = text.replace(".", "").lstrip("0")

    assert len(digits) >= 3  # 3 where six decimals are too few
    assert "." not in text or len(digits) <= 5  # 5 where rounding reaches the next power of ten


def test_values_are_written_with_what_is_known_of_them(done: Evaluated) -> None:
    """Without an interval, without a value, and without anything."""
    value = done.summary.methods["same"].values["lpips"]
    bare = dataclasses.replace(value, value=12.3456, low=None, high=None)

    assert written([bare, dataclasses.replace(bare, value=None), None]) == ["12.35", "-", "-"]
    assert written([dataclasses.replace(bare, low=1, high=20)]) == ["12.35 [1.00, 20.00]"]
    assert decimals([0.0, None]) == 4


def test_reasons_are_grouped_in_the_order_of_the_metrics() -> None:
    """The first metric of each reason decides."""
    assert by_reason({"a": "x", "b": "y", "c": "x"}) == {"x": ["a", "c"], "y": ["b"]}


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1100])
def test_a_browser_shows_the_page_without_moving_it_sideways(done: Evaluated, width: int) -> None:
    """On a phone wide tables move by themselves; nothing is requested but the page."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 900})
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((done.folder / "report.html").as_uri())

        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert [url for url in requests if not url.startswith("data:")] == [page.url]
