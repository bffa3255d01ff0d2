"""Time and memory of evaluation: `python -m tests.benchmarks.evaluate [NAME ...]`.

    job                          the job beside a plain loop of torchmetrics over the same pictures
    ray                          the same by the command with two workers of Ray
    metrics                      every metric on its own, and how long its weights take to load
    fid, fid_dinov2, mmd_dinov2  the distance of two sets of 70,000 features, without the networks

Without a name all of them run, and each keeps ``results/evaluate_<name>.json``. Set
OMP_NUM_THREADS=1 first.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tests.benchmarks.evaluations import job, metrics, ray
from tests.benchmarks.harness import save
from tests.benchmarks.sets_of_features import WIDTHS, distance_of_sets

BENCHES: dict[str, Callable[[], Mapping[str, Any]]] = {
    "job": job,
    "ray": ray,
    "metrics": metrics,
    **{name: partial(distance_of_sets, name) for name in WIDTHS},
}


def main(arguments: Sequence[str]) -> int:
    """Run the benches named on the command line, or all, and say where each result lies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", nargs="*", choices=["all", *BENCHES], default="all")
    names = parser.parse_args(arguments).bench
    for name in BENCHES if "all" in names else names:
        path = save(f"evaluate_{name}", BENCHES[name](), "torch", "torchmetrics", "ray")
        sys.stdout.write(f"{path}\n{path.read_text()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
