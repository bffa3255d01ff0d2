"""Time and memory of evaluation: `python -m tests.benchmarks.evaluate [fid|fid_dinov2|mmd_dinov2]`.

Each of these three is the distance of two sets of 70,000 features, without the networks that
compute them; see `tests.benchmarks.sets_of_features`.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tests.benchmarks.harness import save
from tests.benchmarks.sets_of_features import WIDTHS, distance_of_sets

BENCHES: dict[str, Callable[[], Mapping[str, Any]]] = {
    name: partial(distance_of_sets, name) for name in WIDTHS
}


def main(arguments: Sequence[str]) -> int:
    """Run the benches named on the command line, or all, and say where each result lies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", nargs="*", choices=["all", *BENCHES], default="all")
    names = parser.parse_args(arguments).bench
    for name in BENCHES if "all" in names else names:
        path = save(f"evaluate_{name}", BENCHES[name](), "torch")
        sys.stdout.write(f"{path}\n{path.read_text()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
