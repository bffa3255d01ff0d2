"""Measure the networks on one GPU: `python -m tests.benchmarks.gpu --out results.jsonl`.

Rows come in the order of their worth; each is a line of JSON as soon as it is known. The same
command again goes on where it ended. `--list` names the rows, with the seconds that each should
take on an H100 or H200. Without a GPU, or with `--size tiny`, tiny networks try the code.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from infra.errors import UserError
from tests.benchmarks.gpu import agreement, ceilings, restoring, scoring, training
from tests.benchmarks.gpu.device import Device
from tests.benchmarks.gpu.networks import FULL, TINY, Sizes
from tests.benchmarks.gpu.rows import Found, Results, Row, run_rows
from tests.benchmarks.harness import machine

MACHINE = "machine"
AGREEMENT = {  # values of rows, and their columns in the table
    "output": "output",
    "gradients": "gradients",
    "gradients_worst": "worst gradient",
    "worst_gradient": "which",
}
SPEED = {
    "ms": "ms",
    "predicted_ms": "model, ms",
    "over_prediction": "measured / model",
    "samples_per_s": "samples a second",
    "tflops": "TFLOP/s",
    "share_of_ceiling": "of the ceiling",
    "peak_gb": "GB",
}


def all_rows(sizes: Sizes) -> list[Row]:
    """Return what is measured, what tells most first."""
    return [
        *agreement.rows(sizes),
        *ceilings.rows(sizes),
        *restoring.sampler_rows(sizes),
        *training.flow_rows(sizes),
        *restoring.attention_rows(sizes),
        *restoring.precision_rows(sizes),
        *training.vae_rows(sizes),
        *training.deepspeed_rows(sizes),
        *scoring.rows(sizes),
        *training.hdit_rows(sizes),
        *restoring.face_rows(sizes),
        *training.program_rows(sizes),
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure what the file does not have yet; returns 1 if a row failed or is out of tolerance."""
    options = _parsed(arguments)
    sizes = {"full": FULL, "tiny": TINY}[options.size]
    rows = [row for row in all_rows(sizes) if row.name.startswith(tuple(options.rows))]
    if options.list:
        _list(rows)
        return 0
    device = Device.named(options.device)
    deadline = time.monotonic() + 60 * options.minutes
    with Results(Path(options.out)) as results:
        if not options.predict:
            _describe(results, device, options.size)
            _measure(rows, results, device, deadline, arguments)
        _predict(results, deadline)
        found = [results.found[row.name] for row in rows if row.name in results.found]
    sys.stdout.write(tables(found))
    return int(any(line["status"] not in ("ok", "skipped", "not reached") for line in found))


def _measure(
    rows: Sequence[Row],
    results: Results,
    device: Device,
    deadline: float,
    arguments: Sequence[str],
) -> None:
    ceilings.remember(results.found, device)
    for line in run_rows(rows, results, device, deadline):
        _say(line)
        ceilings.remember(results.found, device)
        if line["status"] == "failed" and not device.is_alive():
            _begin_anew(arguments, deadline)


def _predict(results: Results, deadline: float) -> None:
    """Add what the model predicts, which needs more of the dependencies than to measure does."""
    try:
        from tests.benchmarks.gpu.prediction import measured_gpu, predict
    except ImportError as error:
        sys.stderr.write(f"no predictions: {error}. Elsewhere, --predict adds them to this file\n")
        return
    for line in predict(results, deadline):
        _say(line)
    if gpu := measured_gpu(results.found):
        sys.stdout.write(
            f"the model of all passes: python -m tests.benchmarks.roofline --flops {gpu.flops:.4g} "
            f"--bandwidth {gpu.bandwidth:.4g} --launch {gpu.launch:.3g}\n"
        )


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", default="gpu.jsonl", help="the file of results, a row a line")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no row that is longer")
    parser.add_argument("--device", default=kind, help="by default a GPU, if PyTorch finds one")
    parser.add_argument("--size", choices=["full", "tiny"], help="by default full on a GPU")
    parser.add_argument("--rows", nargs="+", default=[""], help="beginnings of names; default: all")
    parser.add_argument(
        "--predict", action="store_true", help="measure nothing; say what rows lack of the model"
    )
    parser.add_argument("--list", action="store_true", help="only name the rows")
    options = parser.parse_args(arguments)
    is_gpu = torch.device(options.device).type == "cuda"
    options.size = options.size or ("full" if is_gpu else "tiny")
    return options


def _list(rows: Sequence[Row]) -> None:
    for row in rows:
        sys.stdout.write(f"{row.seconds:5.0f} s  {row.name}\n")
    sys.stdout.write(f"{sum(row.seconds for row in rows):5.0f} s  all\n")


def _describe(results: Results, device: Device, size: str) -> None:
    """Record where the rows come from.

    Raises:
        UserError: the file's rows come from elsewhere.
    """
    here: Found = {"size": size, "device": device.name(), "torch": torch.__version__}
    there = results.found.get(MACHINE)
    if there is None:
        _say(
            results.record(MACHINE, {"status": "ok", **here, **device.facts(), **machine("torch")})
        )
    elif different := {name: there.get(name) for name in here if there.get(name) != here[name]}:
        raise UserError(
            f"--out has rows of {different}, and this is {here}: give another file, or measure "
            "there again"
        )


def _begin_anew(arguments: Sequence[str], deadline: float) -> None:
    """Go on in a new process: after some errors of a kernel nothing runs on a GPU in this one."""
    minutes = (deadline - time.monotonic()) / 60
    sys.stdout.flush()
    again = [*arguments, "--minutes", f"{minutes:.3f}"]
    os.execv(sys.executable, [sys.executable, "-m", "tests.benchmarks.gpu", *again])


def tables(found: Sequence[Found]) -> str:
    """Return rows as tables in Markdown: what agrees how well, and what was timed."""
    parts = [part for line in found for part in _parts(line)]
    agreed = [part for part in parts if "worst_gradient" in part]
    others = [part for part in parts if "worst_gradient" not in part]
    return f"{_table(agreed, AGREEMENT)}\n{_table(others, SPEED)}"


def _parts(line: Found) -> list[Found]:
    """Return a row, or the rows inside it, as those of its precisions."""
    inside = {name: part for name, part in line.items() if type(part) is dict and "ms" in part}
    about = {"row": line["row"], "status": line["status"]}
    return [{**about, "row": f"{line['row']}/{name}", **part} for name, part in inside.items()] or [
        line
    ]


def _table(lines: Sequence[Found], columns: Mapping[str, str]) -> str:
    cells = [["row", "", *columns.values()], ["---"] * (2 + len(columns))]
    cells += [
        [str(line["row"]), str(line["status"]), *(_short(line.get(name)) for name in columns)]
        for line in lines
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _say(line: Found) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
