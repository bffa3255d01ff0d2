"""What the READMEs say of the experiments is what the kept results say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "tests" / "experiments"
METHODS = {
    "LQ": "lq",
    "posterior mean": "posterior-mean",
    "latent flow, seed 0": "latent-0",
    "latent flow, seed 1": "latent-1",
    "pixel flow, seed 0": "pixel-0",
    "pixel flow, seed 1": "pixel-1",
}
COLUMNS = {"PSNR": "psnr", "LPIPS": "lpips", "DISTS": "dists", "BRISQUE": "brisque"}
NUMBERS = re.compile(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]")


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of the first table of a README that has a PSNR with intervals."""
    lines = path.read_text().splitlines()
    header = next(
        number
        for number, line in enumerate(lines)
        if line.startswith("|") and "PSNR" in line and NUMBERS.search(lines[number + 2])
    )
    names = [cell.strip(" ↑↓") for cell in lines[header].strip("|").split("|")]
    rows = []
    for line in lines[header + 2 :]:
        if not line.startswith("|"):
            return rows
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows.append({"": cells[0], **dict(zip(names[1:], cells[1:], strict=True))})
    return rows


def said(cell: str) -> list[str]:
    """Return value, low and high of a cell, as they are written."""
    found = NUMBERS.fullmatch(cell)
    assert found, cell
    return list(found.groups())


def rounded(value: dict[str, Any], like: list[str]) -> list[str]:
    """Return value, low and high with as many decimals as were written."""
    numbers = (value["value"], value["low"], value["high"])
    places = [len(text.partition(".")[2]) for text in like]
    return [f"{number:.{digits}f}" for number, digits in zip(numbers, places, strict=True)]


@pytest.mark.parametrize("readme", ["README.md", "tests/experiments/README.md"])
def test_the_tables_of_the_readmes_are_the_kept_results(readme: str) -> None:
    """Values and intervals of every method, metric by metric."""
    results = json.loads((EXPERIMENTS / "results" / "flows.json").read_text())
    rows = table(ROOT / readme)

    assert {row[""] for row in rows} <= METHODS.keys()
    assert len(rows) >= 4
    for row in rows:
        values = results["methods"][METHODS[row[""]]]["values"]
        for column, metric in COLUMNS.items():
            told = said(row[column])
            assert told == rounded(values[metric], told), (row[""], metric)


def test_the_results_are_of_all_held_out_portraits() -> None:
    """Every value that was measured on pictures is of 38, which is what the READMEs say."""
    exhibits = [path.read_text() for path in (EXPERIMENTS / "results").glob("*.json")]
    assert {int(n) for text in exhibits for n in re.findall(r'"n": (\d+)', text)} == {38}


def test_the_results_have_no_path_of_the_machine_that_made_them() -> None:
    """Only places below the folder of the experiments."""
    for path in (EXPERIMENTS / "results").glob("*.json"):
        assert not re.search(r'"/(work|home|tmp|root)/', path.read_text()), path.name
