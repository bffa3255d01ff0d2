"""Values by the severity of the degradation: the thirds of each of its parameters."""

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from infra import paths
from infra.errors import UsageError
from models.metrics.catalog import METRICS
from pipelines.evaluate.bootstrap import interval, mean_of_defined, resampled_means
from pipelines.evaluate.results import Floats, Results
from pipelines.evaluate.summary import Slice

PARTS = 3


def slices(results: Results, table: str, resamples: int) -> Iterator[Slice]:
    """Yield every metric of single pictures on the thirds of each parameter, of every method.

    Args:
        results: what is measured.
        table: file with the parameters of each key's degradation; "" for none.
        resamples: for the intervals.

    Raises:
        UsageError: the table cannot be read, or lacks keys.
    """
    if not table:
        return
    for by, parameter in read_degradations(table, results.keys).items():
        for rows in thirds(parameter):
            for method in results.pairs.methods:
                for name in results.metrics("image"):
                    values = results.column(method, name)[rows]
                    yield _slice(method, name, by, parameter[rows], values, resamples)


def thirds(parameter: Floats) -> Iterator[np.ndarray]:
    """Yield the rows of each third of a parameter's values; equal values are not divided."""
    defined = parameter[~np.isnan(parameter)]
    if not len(defined):
        return
    ends = np.unique(np.quantile(defined, np.linspace(0, 1, PARTS + 1)))
    for number, (low, high) in enumerate(pairwise(ends)):
        above = parameter >= low if number == 0 else parameter > low
        rows = np.flatnonzero(above & (parameter <= high))
        if len(rows):
            yield rows


def _slice(
    method: str, name: str, by: str, parameter: Floats, values: Floats, resamples: int
) -> Slice:
    root = np.sqrt if METRICS[name].pooled == "root_mean" else np.asarray
    value = float(root(mean_of_defined(values)))
    low, high = interval(root(resampled_means(values[:, None], resamples)[:, 0]))
    is_defined = not np.isnan(value)
    return Slice(
        method=method,
        metric=name,
        by=by,
        at_least=float(parameter.min()),
        at_most=float(parameter.max()),
        n=len(values),
        value=value if is_defined else None,
        low=low if is_defined else None,
        high=high if is_defined else None,
    )


def read_degradations(file: str, keys: list[str]) -> Mapping[str, Floats]:
    """Read the numeric columns of a table with a column ``key``, in the order of the keys.

    Raises:
        UsageError: it cannot be read, has no such column, or lacks keys.
    """
    path = paths.path_of(file)
    try:
        with paths.fetched(path) as local:
            table = pa_csv.read_csv(local) if file.endswith(".csv") else pq.read_table(local)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"--degradations {file}: cannot be read ({error})") from error
    if "key" not in table.column_names:
        raise UsageError(
            f"--degradations {file}: no column `key`, only {', '.join(table.column_names)}"
        )
    rows = {str(key): row for row, key in enumerate(table["key"].to_pylist())}
    if lacking := [key for key in keys if key not in rows]:
        raise UsageError(
            f"--degradations {file}: no row for {len(lacking):,} keys: {', '.join(lacking[:20])}"
        )
    order = [rows[key] for key in keys]
    numeric = [
        one.name
        for one in table.schema
        if pa.types.is_floating(one.type) or pa.types.is_integer(one.type)
    ]
    return {name: np.asarray(table[name].to_numpy(), dtype=np.float64)[order] for name in numeric}
