"""What the networks would take on a GPU of three numbers: `python -m tests.benchmarks.roofline`.

A model, and no measurement: the kernels of each pass are counted on the meta device as
`tests.support.cuda_counts` says, and each takes the longest of its operations over the peak, its
bytes over the bandwidth, and the time between two starts. The table is written in Markdown to the
standard output, and with --save NAME, kernel by kernel added up, to `results/NAME.json`.
"""

import argparse
import collections
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from tests.benchmarks.harness import save
from tests.support.counted_passes import PASSES, CountedPass
from tests.support.cuda_counts import Gpu, Kernel, Traced

MOST = 12  # names of kernels that the file tells the time of


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for field in fields(Gpu):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default)
    parser.add_argument("--case", action="append", choices=PASSES, help="again for several")
    parser.add_argument("--save", metavar="NAME", help="write tests/benchmarks/results/NAME.json")
    options = vars(parser.parse_args())
    cases, name = options.pop("case") or list(PASSES), options.pop("save")
    gpu = Gpu(**options)
    found = {case: measures(PASSES[case], PASSES[case].traced(), gpu) for case in cases}
    print(table(found))  # noqa: T201
    if name:
        save(name, {"gpu": asdict(gpu), "passes": found}, "torch")


def measures(counted: CountedPass, traced: Traced, gpu: Gpu) -> dict[str, Any]:
    """Return the times of a pass in milliseconds, what is guarded, and what takes longest."""
    kernels, times = traced.kernels, counted.repeats
    return {
        "title": counted.title,
        "kernels": times * len(kernels),
        "eager_ms": round(1e3 * times * gpu.eager(kernels), 2),
        "fused_ms": round(1e3 * times * gpu.fused(kernels), 2),
        "products_ms": round(1e3 * times * gpu.products(kernels), 2),
        "tflop": round(times * sum(kernel.flops for kernel in kernels) / 1e12, 3),
        "gigabytes": round(times * sum(kernel.size for kernel in kernels) / 1e9, 2),
        "counts_of_one": asdict(traced.counts()),
        "attention": {f"{path}: {why}": count for (path, why), count in _paths(traced)},
        "longest_ms": longest(kernels, times, gpu),
    }


def longest(kernels: Sequence[Kernel], times: int, gpu: Gpu) -> dict[str, float]:
    """Add the milliseconds of kernels up by their names, and return those that take the most."""
    by_name: collections.Counter[str] = collections.Counter()
    for kernel in kernels:
        by_name[f"{kernel.name} ({kernel.kind})" if kernel.kind else kernel.name] += 1e3 * (
            times * gpu.eager([kernel])
        )
    return {name: round(spent, 2) for name, spent in by_name.most_common(MOST)}


def _paths(traced: Traced) -> list[tuple[tuple[str, str], int]]:
    return collections.Counter(traced.attention).most_common()


def table(found: dict[str, dict[str, Any]]) -> str:
    """Lay the passes out in Markdown, a line each."""
    lines = [
        "| pass | kernels | eager ms | fused ms (estimate) | products only | attention |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for row in found.values():
        spent = (f"{row[name]:.3g}" for name in ("eager_ms", "fused_ms", "products_ms"))
        cells = (row["title"], f"{row['kernels']:,}", *spent, row["counts_of_one"]["attention"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
