"""Values by the severity of the degradation: the thirds of each of its parameters."""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from infra import paths
from infra.errors import UsageError
from pipelines.evaluate.bootstrap import interval, mean_of_defined, resampled_means
from pipelines.evaluate.differences import pooled
from pipelines.evaluate.pairs import names
from pipelines.evaluate.results import Floats, Results
from pipelines.evaluate.summary import Slice

PARTS = 3
SEED = "seed"  # end of the name of a column that is no severity


def slices(results: Results, table: str, resamples: int) -> Iterator[Slice]:
    """Yield every metric of single pictures on the thirds of each parameter, of every method.

    Args:
        results: what is measured.
        table: file with the parameters of each key's degradation; "" for none.
        resamples: for the intervals.

    Raises:
        UsageError: see `read_degradations`.
    """
    if not table:
        return
    parameters = read_degradations(table, results.keys)
    columns = {
        (method, name): values
        for method in results.pairs.methods
        for name, values in results.columns(method).items()
    }
    for by, parameter in parameters.items():
        for rows in thirds(parameter):
            yield from _of_rows(columns, by, parameter, rows, resamples)


def thirds(parameter: Floats) -> list[npt.NDArray[np.int64]]:
    """Return the rows of each third of a parameter's values [n], from the least on.

    Equal values are not divided: they belong to the third in which the middle of their ranks lies.
    So there can be two parts, of unequal sizes; of a parameter that is the same everywhere there
    is none. NaN belongs to no part.
    """
    defined = np.flatnonzero(~np.isnan(parameter))
    _, inverse, counts = np.unique(parameter[defined], return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - counts / 2
    part = np.floor(PARTS * middles / max(1, len(defined))).astype(np.int64)[inverse]
    found = [defined[part == number] for number in np.unique(part)]
    return found if len(found) > 1 else []


def _of_rows(
    columns: Mapping[tuple[str, str], Floats],
    by: str,
    parameter: Floats,
    rows: npt.NDArray[np.int64],
    resamples: int,
) -> Iterator[Slice]:
    """Yield every column of (method, metric) on some rows."""
    if not columns:
        return
    taken = np.stack([values[rows] for values in columns.values()], axis=1)
    again = resampled_means(taken, resamples)
    for number, (method, name) in enumerate(columns):
        value = float(pooled(name, mean_of_defined(taken[:, number])))
        low, high = interval(pooled(name, again[:, number]))
        is_defined = not np.isnan(value)
        yield Slice(
            method=method,
            metric=name,
            by=by,
            at_least=float(parameter[rows].min()),
            at_most=float(parameter[rows].max()),
            n=len(rows),
            value=value if is_defined else None,
            low=low if is_defined else None,
            high=high if is_defined else None,
        )


def read_degradations(file: str, keys: list[str]) -> Mapping[str, Floats]:
    """Read the parameters of the degradations of a test set.

    Args:
        file: a .parquet or .csv with a column ``key`` and a row for each key. A column is read if
            it has numbers, truth values (0 and 1), or lists of numbers, of which the root mean
            square counts, such as a blur's two sigmas. Fields of a struct are columns of their
            own. Columns whose name ends in "seed" are no severity, and are left out.
        keys: the order of the values that are returned.

    Returns:
        The values [n] of each column that is read, NaN where there is none.

    Raises:
        UsageError: it cannot be read, has no such columns, or has not one row for each key.
    """
    table = _table(file)
    if "key" not in table.column_names:
        raise UsageError(
            f"--degradations {file}: no column `key`, only {', '.join(table.column_names)}"
        )
    order = _order(file, [str(key) for key in table["key"].to_pylist()], keys)
    found = {
        column: values[order]
        for column in table.column_names
        if column != "key" and not column.endswith(SEED)
        if (values := _numbers(table[column])) is not None
    }
    if not found:
        raise UsageError(f"--degradations {file}: no column with numbers beside `key`")
    return found


def _table(file: str) -> pa.Table:
    as_text = pa_csv.ConvertOptions(column_types={"key": pa.string()})  # 007 is a key, and no 7
    try:
        with paths.fetched(paths.path_of(file)) as local:
            table = (
                pa_csv.read_csv(local, convert_options=as_text)
                if file.endswith(".csv")
                else pq.read_table(local)
            )
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            f"--degradations {file}: cannot be read ({error}); give a .parquet or a .csv"
        ) from error
    while any(pa.types.is_struct(one.type) for one in table.schema):
        table = table.flatten()
    return table


def _order(file: str, found: list[str], keys: list[str]) -> list[int]:
    """Return the row of each key."""
    rows = {key: row for row, key in enumerate(found)}
    if lacking := [key for key in keys if key not in rows]:
        raise UsageError(
            f"--degradations {file}: no row for {len(lacking):,} keys: {names(lacking)}"
        )
    wanted = {*keys}
    several = sorted({key for row, key in enumerate(found) if rows[key] != row} & wanted)
    if several:
        raise UsageError(
            f"--degradations {file}: several rows for {len(several):,} keys: {names(several)}; "
            "keep the one whose degradation made the picture"
        )
    return [rows[key] for key in keys]


def _numbers(column: pa.ChunkedArray) -> Floats | None:
    """Return the numbers of a column; None if it has none."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        if not _is_numeric(kind.value_type):
            return None
        return np.array([_root_mean_square(values) for values in column.to_pylist()])
    if not _is_numeric(kind):
        return None
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    )


def _root_mean_square(values: list[float | None] | None) -> float:
    if not values or None in values:
        return float("nan")
    return float(np.sqrt(np.mean(np.square(np.array(values, dtype=np.float64)))))
