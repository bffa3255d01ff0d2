"""What every benchmark shares: paired medians, a description of the machine, one JSON each."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
RUNS = 5


def paired(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    runs: int = RUNS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Time two callables in turn, A B A B, after one warm-up of each.

    Args:
        ours: the numerator of the ratio.
        theirs: the denominator.
        runs: counted runs of each.
        clock: time.process_time is moved less by other work on the machine; with one thread and
            no waiting it says the same.

    Returns:
        Medians in seconds of both sides; median and spread of the pairwise ratio ours / theirs.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):
        for side, function in enumerate((ours, theirs)):
            start = clock()
            function()
            if run:
                seconds[side].append(clock() - start)
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    return {
        "ours_s": statistics.median(seconds[0]),
        "theirs_s": statistics.median(seconds[1]),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "runs": runs,
    }


def machine(*packages: str) -> dict[str, Any]:
    """Describe where a number came from: processor, cores, load, versions of ``packages``."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "load_1m": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in packages},
    }


def save(name: str, measurements: Mapping[str, Any], *packages: str) -> Path:
    """Write ``results/<name>.json``: the machine and the measurements."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    result = {"machine": machine(*packages), "measurements": measurements}
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
