"""The page of an evaluation, and its lines on the terminal."""

from collections.abc import Iterator

from infra.paths import AnyPath
from models.metrics.catalog import METRICS
from pipelines.evaluate.results import Results
from pipelines.evaluate.summary import PAGE, Summary, Value
from pipelines.jobs import page


def as_text(summary: Summary, folder: AnyPath) -> str:
    """Say the numbers in a table of a line for each metric."""
    header = [f"metric (n = {summary.test_set.n:,})", *summary.methods]
    rows = [
        [f"{name} {direction(name)}"]
        + [number(one.values.get(name)) for one in summary.methods.values()]
        for name in summary.metrics()
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    lines += summary.notes
    return "\n".join(lines) + f"\n{folder / PAGE}\n"


def direction(name: str) -> str:
    """Return an arrow that says which way is better."""
    return "↑" if METRICS[name].higher_is_better else "↓"


def number(value: Value | None) -> str:
    """Write a value with its interval."""
    if value is None or value.value is None:
        return "-"
    if value.low is None or value.high is None:
        return f"{value.value:.4g}"
    return f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]"


def build(results: Results, summary: Summary) -> str:
    """Return the page."""
    rows = [*_rows(summary)]
    sections = [("", page.table(["metric", *summary.methods], rows))]
    return page.page("Evaluation", str(results.pairs.left_out), sections)


def _rows(summary: Summary) -> Iterator[list[str]]:
    for name in summary.metrics():
        cells = [number(one.values.get(name)) for one in summary.methods.values()]
        yield [f"{name} {direction(name)}", *cells]
