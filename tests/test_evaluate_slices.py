"""Values by severity: how a parameter is divided, and which tables are read or refused."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.degradation.parameters import PRESETS
from datasets.degradation.reference import draw_parameters
from infra.config import to_dict
from infra.errors import UsageError
from pipelines.evaluate.slices import read_degradations, thirds
from pipelines.evaluate.summary import Slice, Summary
from tests.support.evaluate_jobs import evaluate, write_pictures

NAN = float("nan")
KEYS = [f"face-{number}" for number in range(6)]
PARAMETERS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0, NAN]), max_size=30)


@given(PARAMETERS)
@settings(max_examples=100)
def test_parts_divide_no_equal_values(drawn: list[float]) -> None:
    """Parts are in rising order, share no value, and hold every row that has one."""
    parameter = np.array(drawn, dtype=np.float64)
    parts = thirds(parameter)

    assert len(parts) in (0, 2, 3)
    for lower, upper in pairwise(parts):
        assert parameter[lower].max() < parameter[upper].min()
    if parts:
        assert sorted(np.concatenate(parts)) == np.flatnonzero(~np.isnan(parameter)).tolist()
    else:
        assert len(np.unique(parameter[~np.isnan(parameter)])) < 2


@pytest.mark.parametrize("count", [3, 7, 38, 3000])
def test_distinct_values_are_divided_equally(count: int) -> None:
    """Thirds of distinct values differ by one row at most."""
    sizes = [len(rows) for rows in thirds(np.random.default_rng(count).permutation(count) + 0.5)]

    assert len(sizes) == 3
    assert max(sizes) - min(sizes) <= 1


def test_a_rare_case_is_a_part_of_its_own() -> None:
    """Of a hundred pictures one is grey: the grey one and the others are the two parts."""
    parts = thirds(np.array([0.0] * 99 + [1.0]))

    assert [len(rows) for rows in parts] == [99, 1]


def write(folder: Path, columns: Mapping[str, Sequence[object]], ending: str) -> str:
    """Write a table of degradations; returns its path."""
    path, table = folder / f"table.{ending}", pa.table(dict(columns))
    if ending == "csv":
        pa_csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return str(path)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_is_read_in_the_order_of_the_keys(ending: str, tmp_path: Path) -> None:
    """Rows in any order, keys that look like numbers, and further rows and columns are fine."""
    columns = {
        "key": ["007", "10", "9"],
        "noise": [7, 10, 9],
        "blur": [0.7, None, 0.9],
        "gray": [True, False, False],
        "camera": ["a", "b", "c"],
        "noise_seed": [1, 2, 3],
    }
    found = read_degradations(write(tmp_path, columns, ending), ["10", "007"])

    assert {name: values.tolist() for name, values in found.items() if name != "blur"} == {
        "noise": [10, 7],
        "gray": [0, 1],
    }
    assert found["blur"] == pytest.approx([NAN, 0.7], nan_ok=True)


def test_the_records_of_draws_are_a_table_as_they_are(tmp_path: Path) -> None:
    """What `datasets.degradation` records of every draw needs no conversion."""
    draws = {key: draw_parameters(PRESETS["gfpgan-v1"], seed=0, key=key) for key in KEYS}
    path = tmp_path / "draws.parquet"
    pq.write_table(
        pa.Table.from_pylist([{"key": key, **to_dict(draws[key])} for key in KEYS]), path
    )

    found = read_degradations(str(path), KEYS)

    assert found["downscale"].tolist() == [draws[key].downscale for key in KEYS]
    assert found["blur_sigma"].tolist() == pytest.approx(
        [np.sqrt(np.mean(np.square(draws[key].blur_sigma))) for key in KEYS]
    )
    jitters = [draws[key].color_jitter for key in KEYS]
    assert any(jitters)
    assert found["color_jitter.contrast"] == pytest.approx(
        [jitter.contrast if jitter else NAN for jitter in jitters], nan_ok=True
    )
    assert "noise_seed" not in found


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"key": ["a", "b"], "x": [1, 2]}, "no row for 2 keys: c, d"),
        (
            {"key": ["a", "b", "c", "d", "d", "e", "e"], "x": [*range(7)]},
            "several rows for 1 keys: d; keep the one",
        ),
        ({"name": ["a"], "x": [1]}, "no column `key`, only name, x"),
        ({"key": ["a", "b", "c", "d"], "seed": [*range(4)]}, "no column with numbers"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    columns: dict[str, list[object]], said: str, tmp_path: Path
) -> None:
    """The message names the file and the keys or columns."""
    path = write(tmp_path, columns, "parquet")

    with pytest.raises(UsageError, match=f"--degradations {re.escape(path)}: {re.escape(said)}"):
        read_degradations(path, ["a", "b", "c", "d"])


@pytest.mark.parametrize("name", ["table.csv", "table.parquet", "absent.csv", "absent.parquet"])
def test_files_that_are_no_tables_are_refused(name: str, tmp_path: Path) -> None:
    """So are files that are not there."""
    (tmp_path / "table.parquet").write_bytes(b"no table")
    (tmp_path / "table.csv").write_bytes(b"")

    with pytest.raises(UsageError, match=f"{name}: cannot be read .*give a .parquet or a .csv"):
        read_degradations(str(tmp_path / name), ["a"])


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """Evaluate two methods on six pictures with a table of two parameters."""
    folder = tmp_path_factory.mktemp("slices")
    hq = write_pictures(folder / "hq", 6)
    methods = {"good": write_pictures(folder / "good", 6, noise=4), "hq": hq}
    columns = {"key": KEYS, "blur": [5, 1, 3, 2, 6, 4], "kernel": [41] * 6}
    return evaluate(
        folder / "out",
        {**methods, "poor": write_pictures(folder / "poor", 6, noise=20)},
        reference=hq,
        posterior_mean=hq,
        metrics=("colour", "indrmse_pmrf"),
        degradations=write(folder, columns, "csv"),
    )


def of(summary: Summary, method: str, metric: str) -> list[Slice]:
    """Return the slices of a method in a metric."""
    return [one for one in summary.slices if (one.method, one.metric) == (method, metric)]


def test_every_metric_of_every_method_is_sliced(summary: Summary) -> None:
    """By each parameter that differs between pictures, with the ends of its ranges."""
    assert {one.by for one in summary.slices} == {"blur"}
    for method in summary.methods:
        for metric in ("colour", "indrmse_pmrf"):
            found = of(summary, method, metric)
            assert [(one.at_least, one.at_most, one.n) for one in found] == [
                (1, 2, 2),
                (3, 4, 2),
                (5, 6, 2),
            ]


@pytest.mark.parametrize("method", ["good", "poor"])
def test_equal_parts_together_are_the_whole(summary: Summary, method: str) -> None:
    """Means of the parts have the mean of all; a root of means has it in its squares."""
    values = summary.methods[method].values

    colours = [one.value or NAN for one in of(summary, method, "colour")]
    assert np.mean(colours) == pytest.approx(values["colour"].value)

    roots = [one.value or NAN for one in of(summary, method, "indrmse_pmrf")]
    assert np.mean(np.square(roots)) == pytest.approx((values["indrmse_pmrf"].value or NAN) ** 2)


def test_a_value_lies_in_its_interval(summary: Summary) -> None:
    """Of two pictures the interval reaches from the one to the other at most."""
    for one in summary.slices:
        assert one.low is not None
        assert one.high is not None
        assert one.low <= (one.value or 0) <= one.high
