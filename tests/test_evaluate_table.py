"""`evaluate table`: the paper's Table 4 of evaluations, and of nothing that cannot be compared."""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UsageError
from models.metrics.catalog import METRICS
from pipelines.evaluate.__main__ import main
from pipelines.evaluate.differences import leads, paired
from pipelines.evaluate.ranking import marks, ranked, ranked_in
from pipelines.evaluate.summary import (
    FEWEST,
    SUMMARY,
    VALUES,
    Difference,
    Fingerprint,
    Method,
    Summary,
    Value,
    encoded,
)
from pipelines.evaluate.summary import TestSet as Pictures
from pipelines.evaluate.table.columns import COLUMNS
from pipelines.evaluate.table.config import ACCEPTABLE, TableConfig
from pipelines.evaluate.table.exhibit import Exhibit, exhibit
from pipelines.evaluate.table.formats import FORMATS, _latex, _markdown, csv_rows, latex, markdown
from tests.support.evaluate_jobs import evaluate, write_pictures

KEYS, HQ = "a" * 64, "b" * 64
N = 3000
Numbers = Mapping[str, float | None]
Compared = tuple[str, dict[str, float | None], dict[frozenset[str], Difference]]
"""A metric, the value of each method, and the difference of every two."""


def fingerprint(metric: str, **parts: object) -> Fingerprint:
    """Return one as an evaluation of this version has it."""
    known = METRICS[metric]
    fields = {
        "variant": known.variant,
        "implementation": known.implementation,
        "weights": "",
        "resize": known.resize,
        "reference": KEYS if known.against == "none" else HQ,
        "n": N,
        "dtype": known.dtype,
        "device": "cpu",
    }
    return Fingerprint(metric=metric, **{**fields, **parts})  # type: ignore[arg-type]


def value(metric: str, number: float | None, **parts: object) -> Value:
    """Return a value with an interval of 0.25 to both sides; without one of a whole set."""
    has_interval = METRICS[metric].kind == "image" and number is not None
    return Value(
        value=number,
        low=number - 0.25 if has_interval and number is not None else None,
        high=number + 0.25 if has_interval and number is not None else None,
        fingerprint=fingerprint(metric, **parts),
    )


def difference(metric: str, first: str, second: str, low: float, high: float) -> Difference:
    """Return the difference of two methods with an interval."""
    middle = (low + high) / 2
    return Difference(
        metric=metric, first=first, second=second, value=middle, low=low, high=high, n=N
    )


def summary(
    methods: Mapping[str, Numbers],
    differences: Sequence[Difference] = (),
    missing: Mapping[str, str] | None = None,
    test_set: Mapping[str, str] | None = None,
    **parts: object,
) -> Summary:
    """Return the summary of an evaluation with these numbers; ``parts`` of all fingerprints."""
    sets = {"protocol": "celeba-test", "keys": KEYS, "hq": HQ, **(test_set or {})}
    return Summary(
        test_set=Pictures(n=N, sizes={"512 x 512": N}, **sets),
        methods={
            name: Method(
                folder=f"{name}/",
                pixels=f"{name}'s pictures",
                values={metric: value(metric, x, **parts) for metric, x in numbers.items()},
            )
            for name, numbers in methods.items()
        },
        missing=missing or {},
        differences=differences,
        settings={"measure.bootstrap": 1000, "sets.reference": "hq/"},
    )


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return what writes a summary into a folder, which the tests name as a user would."""
    monkeypatch.chdir(tmp_path)

    def write(folder: str, *arguments: object, **fields: object) -> str:
        Path(folder).mkdir()
        (Path(folder) / SUMMARY).write_bytes(encoded(summary(*arguments, **fields)))  # type: ignore[arg-type]
        return folder

    return write


Written = Callable[..., str]


def shown(where: Sequence[str], **fields: object) -> Exhibit:
    """Return the table of evaluations."""
    return exhibit(where, TableConfig(**fields))  # type: ignore[arg-type]


# --- marks


@st.composite
def compared(
    draw: st.DrawFn,
) -> tuple[str, dict[str, float | None], dict[frozenset[str], Difference]]:
    """Draw methods with values, ties and gaps among them, and intervals of all differences."""
    metric = draw(st.sampled_from(["psnr", "lpips"]))
    numbers = st.one_of(st.none(), st.integers(-3, 3).map(float))
    values = draw(st.dictionaries(st.sampled_from("abcde"), numbers, min_size=1))
    width = st.sampled_from([0.0, 0.5, 1.5])
    differences = {}
    for first, second in combinations(values, 2):
        mine, other = values[first], values[second]
        if mine is not None and other is not None:
            middle, half = mine - other, draw(width)
            made = difference(metric, first, second, middle - half, middle + half)
            differences[frozenset((first, second))] = made
    return metric, values, differences


@given(compared())
def test_a_mark_is_supported_by_every_interval_behind_it(
    drawn: Compared,
) -> None:
    """No interval of a marked method's difference to one behind it includes 0."""
    metric, values, differences = drawn
    higher = METRICS[metric].higher_is_better
    order = ranked(values, higher)
    found = marks(order, lambda one, other: leads(differences[frozenset((one, other))], one))

    for method in found:
        mine = values[method]
        assert mine is not None
        behind = order[order.index(method) + 1 :]
        assert behind
        for other in behind:
            theirs, known = values[other], differences[frozenset((method, other))]
            assert theirs is not None
            assert known.low > 0 or known.high < 0
            assert mine > theirs if higher else mine < theirs
    assert list(found.values()) in ([], ["best"], ["best", "second"])


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=8, max_size=8), min_size=2, max_size=4),
    st.sampled_from(["psnr", "lpips", "indrmse_pmrf"]),
)
def test_marks_of_measured_pictures_are_supported(rows: list[list[int]], metric: str) -> None:
    """The same holds of intervals that are made of the pictures' values."""
    columns = {f"m{i}": np.array(row, dtype=np.float64) for i, row in enumerate(rows)}
    known = {
        frozenset((one.first, one.second)): one for one in paired(metric, columns, resamples=50)
    }
    values = {name: float(column.mean()) for name, column in columns.items()}
    order = ranked(values, METRICS[metric].higher_is_better)
    found = marks(order, lambda one, other: leads(known[frozenset((one, other))], one))

    for method in found:
        for other in order[order.index(method) + 1 :]:
            one = known[frozenset((method, other))]
            assert not one.low <= 0 <= one.high


@pytest.mark.parametrize(("metric", "best"), [("psnr", "high"), ("lpips", "low")])
def test_the_direction_is_the_metrics(written: Written, metric: str, best: str) -> None:
    """The best is the largest value of PSNR and the smallest of LPIPS."""
    methods = {"low": {metric: 1.0}, "high": {metric: 2.0}, "middle": {metric: 1.5}}
    clear = [
        difference(metric, "low", "high", -1.1, -0.9),
        difference(metric, "low", "middle", -0.6, -0.4),
        difference(metric, "high", "middle", 0.4, 0.6),
    ]
    table = shown([written("eval", methods, clear)])

    assert table.marks == {metric: {best: "best", "middle": "second"}}


def test_a_tie_has_no_mark(written: Written) -> None:
    """Equal values, and a lead that other pictures could turn, mark nobody; nor does the last."""
    methods = {"a": {"psnr": 26.0, "ssim": 0.8}, "b": {"psnr": 26.0, "ssim": 0.7}}
    unclear = [difference("psnr", "a", "b", 0, 0), difference("ssim", "a", "b", -0.1, 0.3)]
    table = shown([written("eval", methods, unclear)])

    assert table.marks == {"psnr": {}, "ssim": {}}


def test_few_pictures_support_nothing(tmp_path: Path) -> None:
    """Of one picture an interval has no width: that it leaves out 0 says nothing."""
    columns = {"a": np.ones(FEWEST), "b": np.zeros(FEWEST)}
    enough = next(paired("psnr", columns, resamples=50))
    fewer = next(paired("psnr", {name: x[1:] for name, x in columns.items()}, resamples=50))

    assert (enough.low, enough.high, leads(enough, "a"), leads(enough, "b")) == (1, 1, True, False)
    assert (fewer.low, fewer.high, leads(fewer, "a")) == (1, 1, False)

    hq, noisy = (write_pictures(tmp_path / str(x), FEWEST - 1, noise=x) for x in (0, 9))
    evaluate(tmp_path / "out", {"a": hq, "b": noisy}, reference=hq, metrics=("psnr",))
    table = shown([str(tmp_path / "out")])
    assert table.marks == {"psnr": {}}
    assert "Nothing is marked: an interval of fewer than 6 pictures supports nothing" in table.notes


def test_a_lead_is_that_of_the_common_pictures() -> None:
    """A method whose hard pictures have no value is not better by their absence."""
    hard = np.array([True] * 8 + [False] * 8)
    columns = {"a": np.where(hard, np.nan, 30.0), "b": np.where(hard, 20.0, 31.0)}
    found = next(paired("psnr", columns, resamples=50))
    order = ranked({"a": 30.0, "b": 25.5}, higher_is_better=True)

    assert found.n == 8
    assert marks(order, lambda one, other: leads(found, one)) == {}


def test_distances_of_sets_without_intervals_are_not_marked(written: Written) -> None:
    """FID has no interval by default, so nothing is marked, and the note says why."""
    table = shown([written("eval", {"a": {"fid": 10.0}, "b": {"fid": 90.0}})])

    assert table.marks == {"fid": {}}
    assert any(
        "Not marked: FID, because" in note and "--set-bootstrap" in note for note in table.notes
    )


def test_a_dash_is_never_the_best(written: Written) -> None:
    """What was not measured, or has no value, is a dash; the note says why."""
    one = written("one", {"a": {"lpips": None, "psnr": 20.0}, "b": {"lpips": 0.2, "psnr": 21.0}})
    two = written("two", {"c": {"lpips": 0.3}}, missing={"psnr": "no HQ pictures"})
    table = shown([one, two], methods=("a", "c"))
    rows = [line for line in markdown(table).splitlines() if line.startswith(("| a", "| c"))]

    assert rows == ["| a | 20.00 | - |", "| c | - | 0.3000 |"]
    assert table.marks == {"psnr": {}, "lpips": {}}
    assert "A dash: PSNR of c, in two: no HQ pictures" in table.notes


def test_pictures_without_a_value_are_counted(written: Written, tmp_path: Path) -> None:
    """A mean over fewer pictures says so."""
    made = summary({"a": {"psnr": 20.0}})
    some = replace(made.methods["a"].values["psnr"], undefined=17, note="as it is")
    written("eval", {})
    changed = replace(made, methods={"a": replace(made.methods["a"], values={"psnr": some})})
    (tmp_path / "eval" / SUMMARY).write_bytes(encoded(changed))
    notes = shown(["eval"]).notes

    assert "PSNR of a: 17 of 3,000 pictures have no value, and the mean leaves them out" in notes
    assert "PSNR: as it is" in notes


# --- what is refused


def test_two_reference_sets_are_refused(written: Written) -> None:
    """The same outputs score an FID of 49.81 or 22.24: the message names both references."""
    one = written("ffhq", {"ours": {"fid": 49.81}}, test_set={"hq": ""}, reference="1" * 64)
    two = written("celeba", {"theirs": {"fid": 22.24}}, test_set={"hq": ""}, reference="2" * 64)

    with pytest.raises(
        UsageError,
        match=r"FID: reference 1{12} and 2{12}, in ffhq and in celeba\..*--distribution",
    ):
        shown([one, two])


def test_two_variants_of_deg_are_refused(written: Written) -> None:
    """The angles of the authors and of VQFR, 2.30 or 6.33 degrees, stand in no common column."""
    one = written("a", {"ours": {"deg": 2.30}})
    two = written("b", {"theirs": {"deg_vqfr": 6.33}})
    three = written("c", {"others": {"deg": 6.33}}, variant="vqfr", resize="grey, cv2 bilinear 128")

    with pytest.raises(UsageError, match=r"a has deg \(authors\), and the others have deg_vqfr"):
        shown([one, two])
    with pytest.raises(UsageError, match=r"Deg\.: variant authors and vqfr, .* in a and in c"):
        shown([one, three])


@pytest.mark.parametrize(
    "part", ["variant", "implementation", "weights", "resize", "reference", "n", "dtype", "device"]
)
def test_every_part_of_a_fingerprint_counts(written: Written, part: str) -> None:
    """Another of any part is refused, with the part, the metrics and both folders."""
    other: object = N - 1 if part == "n" else "another"
    one = written("one", {"a": {"psnr": 1.0, "ssim": 1.0}})
    two = written("two", {"b": {"psnr": 2.0, "ssim": 2.0}}, **{part: other})

    with pytest.raises(UsageError, match=rf"PSNR.*: {part} .* and .*, in one and in two"):
        shown([one, two])


def test_a_device_can_be_accepted(written: Written, tmp_path: Path) -> None:
    """Device and dtype may differ if the user says so, and the table says it too; no other."""
    one = written("one", {"a": {"psnr": 1.0, "fid": 1.0}})
    two = written("two", {"b": {"fid": 2.0}}, device="cuda", dtype="float16")
    table = shown([one, two], accept=ACCEPTABLE)

    assert [row.method for row in table.rows] == ["a", "b"]
    assert any(
        "FID, whose dtype float32 and float16 and whose device cpu and cuda are of one and of two"
        in note
        for note in table.notes
    )
    with pytest.raises(UsageError, match="dtype float32 and float16"):
        shown([one, two], accept=("device",))
    with pytest.raises(UsageError, match=r"accept 'reference': unknown; choose of device, dtype"):
        main(["table", "one", "two", "--accept", "reference"])


def test_the_refused_metrics_can_be_left_out(written: Written) -> None:
    """The table of the others can be had, as the message says."""
    one = written("one", {"a": {"psnr": 1.0, "fid": 1.0}})
    two = written("two", {"b": {"fid": 2.0}}, reference="other")

    with pytest.raises(UsageError, match="leave these metrics out by --metrics"):
        shown([one, two])
    assert shown([one, two], methods=("a",)).metrics == ["psnr", "fid"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"keys": "c" * 64}, "digest of the names a{12} and c{12}"),
        ({"hq": "d" * 64}, "reference of HQ"),
    ],
)
def test_other_test_sets_are_refused(written: Written, other: dict[str, str], said: str) -> None:
    """Two sets of one name are known by their digests, in metrics without a reference too."""
    one = written("one", {"a": {"brisque": 1.0}})
    two = written("two", {"b": {"brisque": 2.0}}, test_set=other)

    with pytest.raises(UsageError, match=f"one and two are of different test sets.*{said}"):
        shown([one, two])


def test_one_name_for_two_methods_is_refused(written: Written, tmp_path: Path) -> None:
    """Other pictures under one name are refused; the same pictures are one row with all metrics."""
    one = written("one", {"a": {"psnr": 1.0}, "b": {"psnr": 2.0}})
    two = written("two", {"a": {"ssim": 0.5, "psnr": 1.0}})
    table = shown([one, two])
    text = (tmp_path / "two" / SUMMARY).read_text()

    assert [line for line in markdown(table).splitlines() if "| a" in line] == [
        "| a | 1.00 | 0.5000 |"
    ]
    (tmp_path / "two" / SUMMARY).write_text(text.replace("a's pictures", "other pictures"))
    with pytest.raises(UsageError, match="two methods are called a: a/ in one and a/ in two"):
        shown([one, two])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage: .*table EVAL"),
        (["nowhere"], "nowhere: no summary.json in it; give the --output of a finished"),
        (["empty"], "empty: no summary.json in it"),
        (["old"], "version 0, expected 1; evaluate again"),
        (["torn"], "torn/summary.json: not a JSON file"),
        (["newer"], "newer/summary.json: has sharpness, which this version"),
        (["eval", "eval/"], "eval: given twice"),
        (["eval", "--methods", "a", "c"], "--methods c: no evaluation has it; choose of a"),
        (
            ["eval", "--metrics", "lpips"],
            "--metrics lpips: .*eval: get alex.pth",
        ),
        (["eval", "--metrics", "ssim"], "--metrics ssim: .*it was not asked for there"),
        (["eval", "--metrics", "sharpness"], "metrics 'sharpness': unknown"),
        (["eval", "-o", "empty"], "--output empty: a folder; give a file, such as empty/table.md"),
        (["eval", "-o", "t.docx"], "--output t.docx: give a name in .md, .tex, .csv, or --format"),
    ],
)
def test_what_makes_no_table_is_said(
    written: Written, tmp_path: Path, arguments: list[str], said: str
) -> None:
    """Every refusal names what was given and what to do, and nothing is written."""
    written("eval", {"a": {"psnr": 1.0}}, missing={"lpips": "get alex.pth"})
    text = (tmp_path / "eval" / SUMMARY).read_text()
    (tmp_path / "empty").mkdir()
    for name, content in {
        "old": text.replace('"version": 1', '"version": 0'),
        "torn": text[:100],
        "newer": text.replace('"psnr"', '"sharpness"'),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / SUMMARY).write_text(content)

    with pytest.raises(UsageError, match=said):
        main(["table", *arguments])
    assert not (tmp_path / "t.docx").exists()


# --- formats

GOLDEN_NOTES = (
    "n = 3,000 pictures, protocol celeba-test; digest of the names aaaaaaaaaaaa, of the HQ "
    "pictures bbbbbbbbbbbb",
    "Bold is the best and underlined the second, marked only where the interval of the paired "
    "difference to every method behind leaves out 0; intervals are of 95 {percent}, percentiles "
    "of 1,000 resamples of the pictures, each for itself and not corrected for their number",
    "Not marked: FID, because differences of whole sets have an interval only between methods of "
    "one evaluation with --set-bootstrap",
    "A dash: Deg. of {pmrf}, in eval: no picture has a value",
    "Missing, for want of pictures or weights: LMD; {summary} says of each what to get",
)


@pytest.fixture
def golden(written: Written, tmp_path: Path) -> Exhibit:
    """Return the table of a small evaluation with a name that needs every escape."""
    ours, pmrf, third = "ours_v2", "PMRF* & 100%", "third"
    numbers = {
        ours: {"psnr": 26.3887, "deg": 29.0961, "brisque": -0.001, "fid": 10.9447},
        pmrf: {"psnr": 26.6431, "deg": None, "brisque": 5.5, "fid": 15.1663},
        third: {"psnr": 24.9861, "deg": 34.5372, "brisque": -7.25, "fid": 14.8},
    }
    differences = [
        difference("psnr", ours, pmrf, -0.3, -0.2),
        difference("psnr", ours, third, 1.3, 1.5),
        difference("psnr", pmrf, third, 1.6, 1.7),
        difference("deg", ours, third, -5.5, -5.3),
        difference("brisque", ours, pmrf, -6.5, -4.5),
        difference("brisque", ours, third, -0.5, 15.0),
        difference("brisque", pmrf, third, 12.0, 13.0),
    ]
    made = summary(numbers, differences, {"lmd": "get it"})
    why = replace(made.methods[pmrf].values["deg"], note="no picture has a value", undefined=N)
    values = {**made.methods[pmrf].values, "deg": why}
    methods = {**made.methods, pmrf: replace(made.methods[pmrf], values=values)}
    written("eval", {})
    (tmp_path / "eval" / SUMMARY).write_bytes(encoded(replace(made, methods=methods)))
    return shown(["eval"])


def test_markdown(golden: Exhibit) -> None:
    """The whole table, as it goes into a README."""
    notes = [
        note.format(percent="%", pmrf=r"PMRF\* \& 100%", summary="summary.json")
        for note in GOLDEN_NOTES
    ]

    assert markdown(golden) == "\n".join(
        [
            "| Method | PSNR ↑ | Deg. ↓ | BRISQUE ↓ | FID ↓ |",
            "| --- | ---: | ---: | ---: | ---: |",
            r"| ours\_v2 | <ins>26.39</ins> | **29.10** | 0.00 | 10.94 |",
            r"| PMRF\* \& 100% | **26.64** | - | 5.50 | 15.17 |",
            "| third | 24.99 | 34.54 | -7.25 | 14.80 |",
            "",
            *(f"- {note}." for note in notes),
            "",
        ]
    )


def test_latex(golden: Exhibit) -> None:
    """The whole table, as it goes into a paper; its groups are the paper's."""
    notes = [
        note.format(percent=r"\%", pmrf=r"PMRF* \& 100\%", summary="summary.json")
        for note in GOLDEN_NOTES
    ]

    assert latex(golden) == "\n".join(
        [
            r"% needs \usepackage{booktabs}, and text in UTF-8",
            r"\begin{table*}",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            r"\begin{tabular}{lr r r r}",
            r"\toprule",
            r" & \multicolumn{1}{c}{Distortion} & \multicolumn{1}{c}{Face identity} & "
            r"\multicolumn{1}{c}{Quality without reference} & "
            r"\multicolumn{1}{c}{Distance of sets} \\",
            r"\cmidrule(lr){2-2}\cmidrule(lr){3-3}\cmidrule(lr){4-4}\cmidrule(lr){5-5}",
            r"Method & PSNR$\uparrow$ & Deg.$\downarrow$ & BRISQUE$\downarrow$ & "
            r"FID$\downarrow$ \\",
            r"\midrule",
            r"ours\_v2 & \underline{26.39} & \textbf{29.10} & 0.00 & 10.94 \\",
            r"PMRF* \& 100\% & \textbf{26.64} & -- & 5.50 & 15.17 \\",
            r"third & 24.99 & 34.54 & $-$7.25 & 14.80 \\",
            r"\bottomrule",
            r"\end{tabular}",
            "",
            r"\smallskip",
            r"\parbox{\linewidth}{\footnotesize",
            *(f"{note}." for note in notes),
            "}",
            r"\end{table*}",
            "",
        ]
    )


def test_csv(golden: Exhibit) -> None:
    """A row for each method and metric: exact values, intervals, marks, the whole fingerprint."""
    rows = list(csv.DictReader(io.StringIO(csv_rows(golden))))
    best = rows[4]

    assert [(row["method"], row["metric"]) for row in rows] == [
        (method, metric)
        for method in ("ours_v2", "PMRF* & 100%", "third")
        for metric in ("psnr", "deg", "brisque", "fid")
    ]
    assert best == {
        **{"method": "PMRF* & 100%", "metric": "psnr", "mark": "best", "undefined": "0"},
        **{"value": "26.6431", "low": "26.3931", "high": "26.8931", "note": ""},
        **{"variant": "rgb", "implementation": "latent-pmrf/1", "weights": "", "resize": "none"},
        **{"reference": HQ, "n": "3000", "dtype": "float64", "device": "cpu"},
        **{"protocol": "celeba-test", "test_set": KEYS, "evaluation": "eval"},
        "pictures": "PMRF* & 100%'s pictures",
    }
    assert (rows[5]["value"], rows[5]["undefined"]) == ("", "3000")
    assert rows[5]["note"] == "no picture has a value"


SPECIAL = st.text(st.sampled_from("ab \\&%$#_{}~^<>|*`[]\n"), min_size=1)


@given(SPECIAL)
def test_names_cannot_break_a_latex_table(name: str) -> None:
    """After escaping, only commands that were put there are left; a name is one line."""
    escaped = _latex(name)
    left = re.sub(r"\\(?:text[a-z]+\{\}|[&%$#_{}])", "", escaped)

    assert not set(left) & set("\\&%$#_{}~^<>|\n")


@given(SPECIAL)
def test_names_cannot_break_a_markdown_table(name: str) -> None:
    """A name stays within its cell and reads as it was given."""
    escaped = _markdown(name)

    assert re.sub(r"\\(.)", r"\1", escaped) == " ".join(name.split())
    assert not re.search(r"(?<!\\)(?:\\\\)*[|*_`<\[]", escaped)


def test_the_format_is_that_of_the_files_name(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints markdown, and writes what the file's name or --format asks for."""
    written("eval", {"a": {"psnr": 1.0}})
    table = shown(["eval"])

    assert main(["table", "eval"]) == 0
    assert capsys.readouterr().out == markdown(table)
    for name, kind in {"t.md": "markdown", "t.tex": "latex", "t.csv": "csv"}.items():
        assert main(["table", "eval", "-o", name]) == 0
        assert (tmp_path / name).read_text() == FORMATS[kind](table)  # type: ignore[index]
    assert main(["table", "eval", "-o", "t.txt", "--format", "latex"]) == 0
    assert (tmp_path / "t.txt").read_text() == latex(table)
    said = capsys.readouterr()
    assert "t.csv: 1 methods, 1 metrics" in said.out
    assert "Nothing is marked: no column has two values to compare." in said.err


def test_the_order_is_the_papers() -> None:
    """Every metric of the catalogue has its column, and those of a group stand together."""
    groups = [group for group, _ in groupby(one.group for one in COLUMNS.values())]

    assert COLUMNS.keys() == METRICS.keys()
    assert len(groups) == len(set(groups))


# --- of real evaluations


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Evaluate two methods of 8 pictures: together, and each for itself."""
    root = tmp_path_factory.mktemp("evaluations")
    hq = write_pictures(root / "hq", 8)
    folders = {
        f"noise-{noise}": write_pictures(root / f"{noise}", 8, noise=noise) for noise in (4, 12)
    }
    for name, methods in {
        "both": folders,
        **{method: {method: folder} for method, folder in folders.items()},
    }.items():
        evaluate(root / name, methods, reference=hq)
    return {name: root / name for name in ("both", *folders)}


def test_evaluations_apart_give_the_marks_of_one(evaluations: dict[str, Path]) -> None:
    """Methods of two evaluations are compared picture by picture, as those of one are."""
    together = shown([str(evaluations["both"])])
    apart = shown([str(evaluations["noise-4"]), str(evaluations["noise-12"])])

    assert together.marks == apart.marks
    assert together.marks["psnr"] == {"noise-4": "best"}
    assert markdown(together).split("\n\n")[0] == markdown(apart).split("\n\n")[0]


@pytest.mark.parametrize("damage", ["missing", "torn", "of another"])
def test_values_that_are_not_the_summarys_are_refused(
    evaluations: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    """A table of values that was lost, cut, or is another evaluation's marks nothing silently."""
    folder, good = tmp_path / "copy", evaluations["noise-4"]
    folder.mkdir()
    (folder / SUMMARY).write_bytes((good / SUMMARY).read_bytes())
    if damage == "torn":
        (folder / VALUES).write_bytes((good / VALUES).read_bytes()[:100])
    elif damage == "of another":
        (folder / VALUES).write_bytes((evaluations["both"] / VALUES).read_bytes())
        text = (folder / SUMMARY).read_text()
        values = json.loads(text)["methods"]["noise-4"]["values"]
        (folder / SUMMARY).write_text(text.replace(str(values["psnr"]["value"]), "12.5"))

    with pytest.raises(UsageError, match=rf"{VALUES}: .*run its .* again"):
        shown([str(folder), str(evaluations["noise-12"])])


def test_the_posterior_mean_is_not_ranked_by_its_distance_from_itself() -> None:
    """It is at 0 by definition; among the others the nearest is first, as in any metric."""
    values = {"mean": 0.0, "ours": 0.04, "others": 0.07, "none": None}

    assert ranked_in("indrmse", values) == ["ours", "others"]
    assert ranked_in("lpips", values) == ["mean", "ours", "others"]
