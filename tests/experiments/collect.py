"""Keep what the experiments found: numbers without pictures, in tests/experiments/results.

    python -m tests.experiments.collect --exhibits exhibits --runs runs

Of every exhibit that `python -m pipelines.evaluate` made the JSON is kept, without what each
picture had. Of every training run what it took until its last validation is kept (steps, beside
those that it is to take, counted operations, hours), what that validation found, and the held-out
loss of every validation, which no exhibit draws. Each file says on which machine, with which
versions.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.evaluate.convergence.curves import curve
from pipelines.evaluate.convergence.records import VALIDATION, RunRecord, read_run
from tests.benchmarks.harness import machine

RESULTS = Path(__file__).parent / "results"
EXHIBITS = ("summary.json", "sweep.json", "convergence.json", "vae.json")
PACKAGES = ("torch", "deepspeed", "ray", "webdataset")
LEFT_OUT = ("slices", "settings", "levels")
"""Parts of an exhibit that are large, and that its page shows."""


def exhibits(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the exhibits below a folder, each by the name of its own."""
    for name in EXHIBITS:
        for path in sorted(folder.glob(f"*/{name}")):
            found = lean(json.loads(path.read_text()), str(folder.resolve().parent))
            yield path.parent.name, {"exhibit": path.stem, **found}


def lean(value: Any, root: str) -> Any:
    """Leave out what is large, and write paths as they are below the folder of the experiments."""
    if isinstance(value, Mapping):
        return {name: lean(one, root) for name, one in value.items() if name not in LEFT_OUT}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [lean(one, root) for one in value]
    if isinstance(value, float):
        return float(f"{value:.7g}")
    return value.replace(f"{root}/", "") if isinstance(value, str) else value


def run_facts(run: RunRecord) -> dict[str, Any]:
    """Say what a training run took until its last validation, and what that found."""
    metrics = sorted(name for name in run.points if name.startswith(VALIDATION))
    if not metrics:
        raise SystemExit(f"{run.source}: no validation is recorded; let the run go on")
    names = [name.removeprefix(VALIDATION) for name in metrics]
    costs = {name: float(spent[-1]) for name, spent in curve(run, names[0]).costs.items()}
    last = int(costs["steps"])
    return {
        "batch": int(run.params["engine.global_batch_size"]),
        "device": run.tags["device"],
        "max_steps": int(run.params["loop.max_steps"]),
        "spent": {name: None if math.isnan(cost) else cost for name, cost in costs.items()},
        "validation": {
            name: run.points[metric].get(last) for name, metric in zip(names, metrics, strict=True)
        },
        "loss_by_step": run.points.get(f"{VALIDATION}loss", {}),
    }


def keep(name: str, found: Mapping[str, Any]) -> None:
    """Write a file of results."""
    content = {"machine": machine(*PACKAGES), **found}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{path}\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exhibits", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    given = parser.parse_args()
    for name, found in exhibits(given.exhibits):
        keep(name, found)
    logs = sorted(given.runs.glob("*/log.jsonl"))
    keep("runs", {"runs": {log.parent.name: run_facts(read_run(str(log.parent))) for log in logs}})


if __name__ == "__main__":
    main()
