"""`python -m pipelines.evaluate table EVAL [EVAL ...]`: the paper's Table 4 of evaluations.

    python -m pipelines.evaluate table eval/                           # markdown, on the terminal
    python -m pipelines.evaluate table eval/ others/ -o table4.tex --metrics psnr lpips fid
    python -m pipelines.evaluate table eval/ -o numbers.csv            # with all fingerprints

A row for each method of the evaluations, a column for each metric. What was measured in another way
is not laid side by side, and the message says what differs.
"""

import itertools
import sys

from infra import cli, paths
from infra.errors import UsageError
from pipelines.evaluate.table.config import SUFFIXES, Format, TableConfig


def main(arguments: list[str]) -> int:
    """Write the table; returns the exit code.

    Raises:
        UsageError: no finished evaluation, or numbers that cannot be compared.
    """
    where = list(itertools.takewhile(lambda one: not one.startswith("-"), arguments))
    if not where and not {"-h", "--help"} & set(arguments):
        raise UsageError(
            "usage: python -m pipelines.evaluate table EVAL [EVAL ...] [-o FILE] "
            "[--format markdown|latex|csv] ...; --help lists the options"
        )
    presets = {"default": TableConfig()}
    config = cli.parse(TableConfig, presets, arguments[len(where) :], "table EVAL", __doc__ or "")
    kind = wanted_format(config)
    from pipelines.evaluate.table.exhibit import exhibit
    from pipelines.evaluate.table.formats import FORMATS

    table = exhibit(where, config)
    text = FORMATS[kind](table)
    if not config.output:
        sys.stdout.write(text)
    else:
        path = paths.path_of(config.output)
        paths.write_bytes(path, text.encode())
        said = f"{len(table.rows)} methods, {len(table.metrics)} metrics"
        sys.stdout.write(f"{path}: {said}\n")
    if kind == "csv":  # has no place for sentences
        sys.stderr.write("".join(f"{note}.\n" for note in table.notes))
    return 0


def wanted_format(config: TableConfig) -> Format:
    """Return the format that is asked for, or that of the output's name.

    Raises:
        UsageError: the output's name says nothing of a format, or it is a folder.
    """
    if not config.output:
        return config.format or "markdown"
    path = paths.path_of(config.output)
    if path.is_dir():
        raise UsageError(f"--output {path}: a folder; give a file, such as {path / 'table.md'}")
    if config.format is None and path.suffix not in SUFFIXES:
        raise UsageError(
            f"--output {path}: give a name in {', '.join(SUFFIXES)}, or --format as well"
        )
    return config.format or SUFFIXES[path.suffix]
