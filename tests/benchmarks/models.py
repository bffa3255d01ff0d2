"""Time and memory of the models: `python -m tests.benchmarks.models [vae|attention|degradation]`.

One function per bench, in the table at the end; without arguments all of them run. Each returns
what `harness.save` keeps as ``results/models_<name>.json``. Set OMP_NUM_THREADS=1 first: ratios on
one core are the ones that another machine can repeat.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import save

MIB = 1 << 20


def peak_memory(work: Callable[..., object], *arguments: object) -> dict[str, float]:
    """Run ``work`` once in a fresh process and measure its resident memory, in MiB.

    The kernel's own high-water mark of the process (VmHWM): everything counts, the allocator's
    slack included. ``getrusage`` would carry over the parent's peak through fork and exec.

    Args:
        work: a function of this module's top level; it builds what it needs, then returns a
            callable, and only the memory during that call counts as the peak.
        arguments: what ``work`` is called with; they travel to the process by pickle.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, arguments))


def _measured(work: Callable[..., Any], arguments: Sequence[object]) -> dict[str, float]:
    call = work(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # the mark falls back to what is resident now
    before = _resident("VmRSS")
    call()
    peak = _resident("VmHWM")
    return {"before_mib": before, "peak_mib": peak, "added_mib": round(peak - before, 1)}


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
    return round(kib * 1024 / MIB, 1)


BENCHES: dict[str, Callable[[], Mapping[str, Any]]] = {}


def main(arguments: Sequence[str]) -> int:
    """Run the benches named on the command line, or all, and say where each result lies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", nargs="*", choices=["all", *BENCHES], default="all")
    names = parser.parse_args(arguments).bench
    for name in BENCHES if "all" in names else names:
        path = save(f"models_{name}", BENCHES[name](), "torch")
        sys.stdout.write(f"{path}\n{path.read_text()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
