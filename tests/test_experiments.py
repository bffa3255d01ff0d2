"""What the READMEs say of the experiments is what the kept results say."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "tests" / "experiments"
RESULTS: dict[str, Any] = {
    path.stem: json.loads(path.read_text()) for path in (EXPERIMENTS / "results").glob("*.json")
}
NUMBERS = re.compile(r"(-?[\d.]+)(?: \[(-?[\d.]+), (-?[\d.]+)\])?")
METRICS = {"PSNR": "psnr", "LPIPS": "lpips", "DISTS": "dists", "BRISQUE": "brisque"}
FROM_MEAN = "RMSE from the posterior mean"

Lookup = Callable[[str], Any]
"""From the name of a row in the results to a value with its interval, or to a number alone."""


def measured(exhibit: str, metric: str) -> Lookup:
    """Look up what `pipelines.evaluate` measured of a method."""
    return lambda name: RESULTS[exhibit]["methods"][name]["values"][metric]


def reconstructed(metric: str) -> Lookup:
    """Look up what `pipelines.evaluate vae` measured of an autoencoder."""
    return lambda name: RESULTS["vaes"]["vaes"][name]["values"][metric]


def held_out_loss(name: str) -> float:
    """Look up a run's loss on the 16 held-out draws, after 1,000 steps."""
    runs = RESULTS["runs"]["runs"]
    if name == "latent-0":  # it was trained on 16 draws, and validated these itself
        found: float = runs[name]["loss_by_step"]["1000"]
        return found
    judged: float = runs[f"{name}-judged"]["loss_by_step"]["0"]
    return judged


def validated(metric: str) -> Lookup:
    """Look up what a run's validation found after 1,000 steps."""

    def value(name: str) -> float:
        run = next(run for run in RESULTS["draws"]["runs"] if run["name"] == name)
        curve = run["curves"][metric]
        found: float = curve["values"][curve["steps"].index(1000)]
        return found

    return value


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a README: which it is, and where its numbers come from."""

    readme: str = "tests/experiments/README.md"
    title: str
    """The first cell of its header."""
    rows: Mapping[str, str]
    """The names in the results of what the first cells say."""
    columns: Mapping[str, Lookup]
    """Of the cells that have numbers, by their headers."""

    def read(self) -> list[dict[str, str]]:
        """Return its rows, cells by header."""
        lines = [line.strip() for line in (ROOT / self.readme).read_text().splitlines()]
        (start,) = (
            number
            for number, line in enumerate(lines)
            if cells(line)[0] == self.title and self.columns.keys() <= set(cells(line))
        )
        end = lines.index("", start)
        names = cells(lines[start])
        return [dict(zip(names, cells(line), strict=True)) for line in lines[start + 2 : end]]


def cells(line: str) -> list[str]:
    """Return the cells of a table's line, without the arrows of a header."""
    return [cell.strip(" ↑↓") for cell in line.removeprefix("|").removesuffix("|").split("|")]


FLOWS = {
    "LQ": "lq",
    "posterior mean": "posterior-mean",
    "latent flow, seed 0": "latent-0",
    "latent flow, seed 1": "latent-1",
    "pixel flow, seed 0": "pixel-0",
    "pixel flow, seed 1": "pixel-1",
}
TABLES = {
    "flows in the README": Table(
        readme="README.md",
        title="small, skewed, 128 px",
        rows=FLOWS,
        columns={header: measured("flows", metric) for header, metric in METRICS.items()},
    ),
    "flows": Table(
        title="",
        rows=FLOWS,
        columns={
            header: measured("flows", metric)
            for header, metric in {**METRICS, FROM_MEAN: "indrmse"}.items()
        },
    ),
    "autoencoders": Table(
        title="autoencoder",
        rows={name: name for name in ("small-f4c8", "small-sd-f4c8", "small-f4c4", "small-f4c16")},
        columns={
            f"{where} {header}": look_up(METRICS[header])
            for where, look_up in (
                ("reconstruction:", reconstructed),
                ("restoration:", partial(measured, "vaes-restored")),
            )
            for header in ("PSNR", "LPIPS", "DISTS")
        },
    ),
    "sources": Table(
        title="source",
        rows={
            "E(posterior mean)": "encoded",
            "the same, restored with sigma_s 0.05": "encoded-less-noise",
            "regressed": "regressed",
            "noise, conditional": "noise",
            "E(LQ)": "lq",
        },
        columns={
            **{
                header: measured("sources", metric)
                for header, metric in {**METRICS, FROM_MEAN: "indrmse"}.items()
            },
            "the same of the source, decoded (Eq. 4)": measured("equation-4", "indrmse"),
        },
    ),
    "frozen draws": Table(
        title="draws",
        rows={"1": "draws-1", "4": "draws-4", "16": "latent-0", "online": "online"},
        columns={
            "held-out loss": held_out_loss,
            "LPIPS": validated("lpips"),
            "PSNR": validated("psnr"),
        },
    ),
}


def numbers(cell: str) -> list[str]:
    """Return the numbers of a cell as they are written: a value, and its interval if it has one."""
    found = NUMBERS.fullmatch(cell)
    assert found, f"{cell!r} is no number, and no number with an interval"
    return [number for number in found.groups() if number is not None]


def rounded(value: Any, like: list[str]) -> list[str]:
    """Return a value, and its interval if that is asked for, with the decimals that were written.

    Args:
        value: a number, or a value of the results, which has `low` and `high` too.
        like: the numbers that were written.
    """
    parts = (
        [value[part] for part in ("value", "low", "high")[: len(like)]]
        if isinstance(value, dict)
        else [value]
    )
    places = [len(text.partition(".")[2]) for text in like]
    return [f"{part:.{digits}f}" for part, digits in zip(parts, places, strict=True)]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_readmes_has_the_numbers_of_the_kept_results(name: str) -> None:
    """Every row that is known, and every number, with its interval where one is told."""
    table = TABLES[name]
    rows = table.read()

    assert len(rows) >= 4
    wrong = {}
    for row in rows:
        label = row[table.title]
        written = {header: row[header] for header in table.columns if row[header]}
        for header, text in written.items():
            told = numbers(text)
            kept = rounded(table.columns[header](table.rows[label]), told)
            if told != kept:
                wrong[label, header] = f"{told} is written, {kept} is kept"
    assert not wrong


def test_the_results_are_of_all_held_out_portraits() -> None:
    """Every value that was measured on pictures is of 38, which is what the READMEs say."""
    exhibits = [path.read_text() for path in (EXPERIMENTS / "results").glob("*.json")]
    assert {int(n) for text in exhibits for n in re.findall(r'"n": (\d+)', text)} == {38}


def test_the_results_have_no_path_of_the_machine_that_made_them() -> None:
    """Only places below the folder of the experiments."""
    for path in (EXPERIMENTS / "results").glob("*.json"):
        assert not re.search(r'"/(work|home|tmp|root)/', path.read_text()), path.name
