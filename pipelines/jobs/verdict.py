"""The output of a verification: a line for each problem, a verdict, and an exit code."""

import sys
from collections.abc import Iterable

from infra.paths import AnyPath


def verdict(folder: AnyPath, problems: Iterable[str]) -> int:
    """Print what is wrong with a set, as it is found; returns 1, or 0 if nothing is."""
    found = 0
    for problem in problems:
        sys.stdout.write(f"{problem}\n")
        found += 1
    sys.stdout.write(f"{folder}: {f'problems: {found}' if found else 'everything agrees'}\n")
    return 1 if found else 0
