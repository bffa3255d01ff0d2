"""A table in markdown, in LaTeX, or as rows for a program (CSV)."""

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from itertools import groupby
from typing import NamedTuple

from pipelines.evaluate.summary import Fingerprint
from pipelines.evaluate.table.columns import COLUMNS, shown
from pipelines.evaluate.table.config import Format
from pipelines.evaluate.table.evaluations import Row
from pipelines.evaluate.table.exhibit import Exhibit
from pipelines.evaluate.writing import arrow


class Style(NamedTuple):
    """How a format writes a cell."""

    best: str
    second: str
    dash: str
    minus: str


IN_MARKDOWN = Style("**{}**", "<ins>{}</ins>", "-", "-")
IN_LATEX = Style(r"\textbf{{{}}}", r"\underline{{{}}}", "--", "$-$")
LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
FIELDS = (
    *("method", "metric", "value", "low", "high", "undefined", "mark"),
    *(part.name for part in fields(Fingerprint) if part.name != "metric"),
    *("protocol", "test_set", "pictures", "evaluation", "note"),
)
"""Columns of a table for programs."""


def markdown(table: Exhibit) -> str:
    """Write a table of GitHub's markdown, and its notes as a list."""
    header = ["Method", *(f"{COLUMNS[name].label} {arrow(name)}" for name in table.metrics)]
    lines = [header, ["---", *("---:" for _ in table.metrics)]]
    lines += [[_markdown(row.method), *_cells(table, row, IN_MARKDOWN)] for row in table.rows]
    rows = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{rows}\n" + "".join(f"- {_markdown(note).rstrip('.')}.\n" for note in table.notes)


def latex(table: Exhibit) -> str:
    """Write a floating table of LaTeX, which needs the package booktabs, and its notes below."""
    groups = [
        (_latex(group), len([*names]))
        for group, names in groupby(table.metrics, key=lambda name: COLUMNS[name].group)
    ]
    over = " & ".join(rf"\multicolumn{{{count}}}{{c}}{{{group}}}" for group, count in groups)
    arrows = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}
    names = [f"{_latex(COLUMNS[name].label)}{arrows[arrow(name)]}" for name in table.metrics]
    rows = [[_latex(row.method), *_cells(table, row, IN_LATEX)] for row in table.rows]
    lines = [
        "% needs \\usepackage{booktabs}, and text in UTF-8",
        r"\begin{table*}",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{l{' '.join('r' * count for _, count in groups)}}}",
        r"\toprule",
        rf" & {over} \\",
        "".join(_rules([count for _, count in groups])),
        rf"{' & '.join(['Method', *names])} \\",
        r"\midrule",
        *(rf"{' & '.join(row)} \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        "",
        r"\smallskip",
        r"\parbox{\linewidth}{\footnotesize",
        *(f"{_latex(note).rstrip('.')}." for note in table.notes),
        "}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def csv_rows(table: Exhibit) -> str:
    """Write a row for each method and metric, with the value's interval and fingerprint."""
    file = io.StringIO()
    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        for name in table.metrics:
            writer.writerow({"method": row.method, "metric": name, **_fields(table, row, name)})
    return file.getvalue()


FORMATS: dict[Format, Callable[[Exhibit], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": csv_rows,
}


def _fields(table: Exhibit, row: Row, name: str) -> dict[str, object]:
    place, value = row.place(name), row.value(name)
    if place is None or value is None:
        return {"note": f"not measured in {row.places[0].where}"}
    test_set = place.summary.test_set
    return {
        **{part: getattr(value, part) for part in ("value", "low", "high", "undefined", "note")},
        "mark": table.marks[name].get(row.method),
        **asdict(value.fingerprint),
        "protocol": test_set.protocol,
        "test_set": test_set.keys,
        "pictures": row.found(place).pixels,
        "evaluation": place.where,
    }


def _cells(table: Exhibit, row: Row, style: Style) -> Iterator[str]:
    for name in table.metrics:
        value = row.value(name)
        if value is None or value.value is None:
            yield style.dash
        else:
            number = shown(name, value.value).replace("-", style.minus)
            mark = table.marks[name].get(row.method)
            yield getattr(style, mark).format(number) if mark else number


def _rules(counts: list[int]) -> Iterator[str]:
    """Yield a rule below each group of columns; the first column is the methods'."""
    last = 1
    for count in counts:
        yield rf"\cmidrule(lr){{{last + 1}-{last + count}}}"
        last += count


def _markdown(text: str) -> str:
    """Escape what markdown would take for its own, so that a name reads as it is."""
    return re.sub(r"([\\`*_\[\]<>|~#$&])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    """Escape what LaTeX would take for its own."""
    return "".join(LATEX_ESCAPES.get(one, one) for one in " ".join(text.split()))
