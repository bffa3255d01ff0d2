"""The page of an evaluation, and its lines on the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

from infra.paths import AnyPath
from models.metrics.catalog import METRICS
from pipelines.evaluate import worst
from pipelines.evaluate.differences import leads
from pipelines.evaluate.ranking import Mark, marks, ranked_in
from pipelines.evaluate.results import Results
from pipelines.evaluate.summary import FEWEST, PAGE, Slice, Summary, Value, short
from pipelines.evaluate.writing import (
    aligned,
    by_reason,
    decimals,
    interval,
    named,
    number,
    written,
)
from pipelines.jobs import page, plots

ACROSS = 6  # methods that stand side by side in a table; of more, each has a line of its own
T = TypeVar("T")
PLOT = 300, 210  # CSS pixels of a plot of values by severity
MARKED = (
    "Bold: the best, where the interval of its difference from every other method leaves out 0. "
    "Underlined: the second, where that holds for all but the best. Intervals are of 95 %, by the "
    "bootstrap over pictures; differences are those on the same pictures, of which there must be "
    f"{FEWEST} at least."
)
UNMARKED = (
    "no method is marked as the best, because a distance of whole sets has no interval without "
    "--set-bootstrap 200"
)


def as_text(summary: Summary, folder: AnyPath) -> str:
    """Say the numbers in a table, and what to know of them below it.

    Metrics have a line each, or methods do, where there are more than a line has room for.
    """
    header = [f"n = {summary.test_set.n:,}", *summary.methods]
    found = {name: best_and_second(summary, name) for name in summary.metrics()}
    rows = [[named(name), *_texts(summary, name, found[name])] for name in found]
    lines = aligned(_fitted([header, *rows]))
    if any(found.values()):
        lines.append("* the best, by the interval of its difference from every other method")
    lines += [*value_notes(summary), *summary.notes]
    return "\n".join(lines) + f"\n{folder / PAGE}\n"


def _fitted(rows: list[list[T]]) -> list[list[T]]:
    """Give every method a row, where there are more columns of methods than stand side by side."""
    _, *methods = rows[0]
    return rows if len(methods) <= ACROSS else [list(column) for column in zip(*rows, strict=True)]


def _texts(summary: Summary, name: str, found: Mapping[str, Mark]) -> list[str]:
    texts = written([one.values.get(name) for one in summary.methods.values()])
    stars = [" *" if found.get(method) == "best" else "" for method in summary.methods]
    return [f"{text}{star}" for text, star in zip(texts, stars, strict=True)]


def best_and_second(summary: Summary, name: str) -> dict[str, Mark]:
    """Mark the methods that are clearly the best and the second in a metric."""
    values = {m: one.values[name].value for m, one in summary.methods.items() if name in one.values}

    def clearly(one: str, other: str) -> bool:
        difference = summary.difference(name, one, other)
        return difference is not None and leads(difference, one)

    return marks(ranked_in(name, values), clearly)


def value_notes(summary: Summary) -> Iterator[str]:
    """Yield a sentence for everything that a user should know of single values."""
    metrics = summary.metrics()
    notes = {
        name: value.note
        for one in summary.methods.values()
        for name, value in one.values.items()
        if value.note
    }
    for said, names in by_reason(notes).items():
        yield f"{', '.join(names)}: {said}"
    for name in metrics:
        for method, one in summary.methods.items():
            value = one.values.get(name)
            if value is not None and value.value is not None and value.undefined:
                yield (
                    f"{name}: not defined for {value.undefined:,} of {summary.test_set.n:,} "
                    f"pictures of {method}; its value is that of the others"
                )
    unmarked = [name for name in metrics if METRICS[name].kind == "set" and not _is_paired(summary)]
    if unmarked and len(summary.methods) > 1:
        yield f"{', '.join(unmarked)}: {UNMARKED}"


def _is_paired(summary: Summary) -> bool:
    """Tell whether distances of whole sets have intervals."""
    return any(METRICS[one.metric].kind == "set" for one in summary.differences)


def _decimals(summary: Summary, name: str) -> int:
    found = [one.values.get(name) for one in summary.methods.values()]
    return decimals(one.value for one in found if one is not None)


def build(results: Results, summary: Summary) -> str:
    """Return the page."""
    notes = [*summary.notes, *value_notes(summary)]
    given = {name: value for name, value in summary.settings.items() if value not in ("", None, [])}
    sections = [
        ("", page.facts(_facts(summary))),
        ("What was compared", _compared(summary)),
        ("Notes", "".join(map(page.note, notes))),
        ("Values", _values(summary)),
        ("Differences from the best", _differences(summary)),
        *_severities(summary),
        *worst.sections(results),
        ("Missing metrics", missing_metrics(summary.missing)),
        ("What the values depend on", _fingerprints(summary)),
        ("How the pictures were restored", _restored(summary)),
        ("How", page.table(["setting", "value"], [[name, value] for name, value in given.items()])),
    ]
    return page.page("Evaluation", str(summary.settings["output"]), sections)


def _facts(summary: Summary) -> dict[str, str]:
    test_set = summary.test_set
    return {
        "methods": f"{len(summary.methods):,}",
        "pictures of each": f"{test_set.n:,}",
        "protocol": test_set.protocol,
        "pixels": ", ".join(test_set.sizes) if len(test_set.sizes) < 4 else "of many sizes",
        "test set": short(test_set.hq or test_set.keys),
    }


def _compared(summary: Summary) -> str:
    """List the folders with the digests of their pictures."""
    test_set, settings = summary.test_set, summary.settings
    rows = [
        [f"--restored {m}", one.folder, short(one.pixels)] for m, one in summary.methods.items()
    ]
    digests = {"reference": short(test_set.hq) if test_set.hq else "-"}
    for option in ("reference", "distribution", "posterior_mean", "lq", "degradations"):
        if where := settings[f"sets.{option}"]:
            rows.append([f"--{option.replace('_', '-')}", where, digests.get(option, "-")])
    of_what = "the HQ pictures" if test_set.hq else "the names of the pictures, for there is no HQ"
    sizes = ", ".join(f"{count:,} of {size}" for size, count in test_set.sizes.items())
    return page.table(["pictures", "where", "digest"], rows) + page.note(
        f"The test set is known by the digest of {of_what}. Restored pictures: {sizes} pixels. "
        "A digest is that of keys and levels; here are the first 12 of its digits, and all of them "
        "in summary.json."
    )


def _values(summary: Summary) -> str:
    metrics = summary.metrics()
    if not metrics:
        return ""
    corner = "metric" if len(summary.methods) <= ACROSS else "method"
    rows: list[list[object]] = [[corner, *summary.methods]]
    rows += [[named(name), *_cells(summary, name)] for name in metrics]
    header, *body = _fitted(rows)
    said = page.note(MARKED) if len(summary.methods) > 1 else ""
    return page.table([str(name) for name in header], body) + said


def _cells(summary: Summary, name: str) -> Iterator[page.Cell]:
    places, found = _decimals(summary, name), best_and_second(summary, name)
    for method, one in summary.methods.items():
        value = one.values.get(name)
        if value is None or value.value is None:
            yield page.Cell("-", "not defined", "faint")
        else:
            text = number(value.value, places)
            yield page.Cell(text, _below(value, places), found.get(method))


def _below(value: Value, places: int) -> str:
    undefined = f"{value.undefined:,} not defined" if value.undefined else ""
    return "; ".join(filter(None, [interval(value.low, value.high, places), undefined]))


def _differences(summary: Summary) -> str:
    """Show how far each method is from the one with the best value, in every metric."""
    if len(summary.methods) < 2 or not summary.differences:
        return ""
    rows = [
        [named(name), *_from_best(summary, name)]
        for name in dict.fromkeys(one.metric for one in summary.differences)
    ]
    said = page.note("A method's value minus the best one, on the same pictures; grey: not clear.")
    return page.table(["metric", *summary.methods], rows) + said


def _from_best(summary: Summary, name: str) -> Iterator[page.Cell]:
    values = {m: one.values[name].value for m, one in summary.methods.items() if name in one.values}
    order = ranked_in(name, values)
    best = order[0] if order else ""
    found = {method: summary.difference(name, method, best) for method in summary.methods}
    places = decimals(one.value for one in found.values() if one is not None)
    for method, one in found.items():
        if method == best:
            yield page.Cell("best value")
        elif values.get(method) is not None and method not in order:
            yield page.Cell("-", "it is what the others are compared with", "faint")
        elif one is None:
            yield page.Cell("-", "no picture in common", "faint")
        else:
            fewer = f"; n = {one.n:,}" if one.n < summary.test_set.n else ""
            below = interval(one.low, one.high, places) + fewer
            yield page.Cell(f"{one.value:+,.{places}f}", below, None if one.is_clear else "faint")


def _severities(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yield a section for each parameter of the degradation, with a plot for each metric."""
    for by in dict.fromkeys(one.by for one in summary.slices):
        found = [one for one in summary.slices if one.by == by]
        parts = dict.fromkeys((one.at_least, one.at_most, one.n) for one in found)
        ranges = ", ".join(f"{low:.4g} to {high:.4g} (n = {n:,})" for low, high, n in parts)
        said = page.note(f"The pictures with {by} of {ranges}. Bars are intervals of 95 %.")
        drawn = [
            _severity(summary, by, name, [one for one in found if one.metric == name])
            for name in dict.fromkeys(one.metric for one in found)
        ]
        legend = plots.legend([*summary.methods])
        yield f"By severity: {by}", said + legend + page.grid(drawn, PLOT[0])


def _severity(summary: Summary, by: str, name: str, found: Sequence[Slice]) -> str:
    lines = [_line(method, [s for s in found if s.method == method]) for method in summary.methods]
    x, y = plots.Axis(label=by), plots.Axis(label=named(name))
    return plots.plot(lines, x, y, width=PLOT[0], height=PLOT[1], has_legend=False)


def _line(method: str, found: Sequence[Slice]) -> plots.Series:
    """Draw a method's values over the middles of the parts of a parameter."""
    nan = float("nan")
    return plots.Series(
        name=method,
        xs=[(one.at_least + one.at_most) / 2 for one in found],
        ys=[nan if one.value is None else one.value for one in found],
        low=[nan if one.low is None else one.low for one in found],
        high=[nan if one.high is None else one.high for one in found],
        is_line=True,
    )


def _restored(summary: Summary) -> str:
    """Show what the pictures of `pipelines.restore` depend on, a row for each method."""
    found = {name: one.restored for name, one in summary.methods.items() if one.restored}
    if not found:
        return ""
    options = list(dict.fromkeys(option for settings in found.values() for option in settings))
    rows = [
        [name, *(short(str(settings.get(option, "-"))) for option in options)]
        for name, settings in found.items()
    ]
    said = page.note("Of the model, the first 12 digits of the bundle's digest.")
    return page.table(["pictures", *options], rows) + said


def missing_metrics(missing: Mapping[str, str]) -> str:
    """List what could not be computed, a row for each thing to get.

    Args:
        missing: why, by metric.
    """
    rows = [[", ".join(names), why] for why, names in by_reason(missing).items()]
    return page.table(["metrics", "why, and what to do"], rows) if rows else ""


def _fingerprints(summary: Summary) -> str:
    """Show the fingerprint of every metric; what is the same for all stands below the table."""
    found = {
        name: {part: short(text) for part, text in asdict(value.fingerprint).items()}
        for one in summary.methods.values()
        for name, value in one.values.items()
    }
    if not found:
        return ""
    parts = list(next(iter(found.values())))
    differ = [part for part in parts if len({one[part] for one in found.values()}) > 1]
    differ = ["metric", *(part for part in differ if part != "metric")]
    rows = [[one[part] for part in differ] for one in found.values()]
    first = next(iter(found.values()))
    same = ", ".join(f"{part} {first[part]}" for part in parts if part not in differ)
    said = page.note(f"The same for all of them: {same}.") if same else ""
    return page.table(differ, rows) + said
