"""The script for a GPU measures row after row, whatever one of them does; here on a CPU."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.errors import UserError
from tests.benchmarks.gpu.__main__ import all_rows, main, tables
from tests.benchmarks.gpu.agreement import SMOOTH, Pass, compared
from tests.benchmarks.gpu.ceilings import depthwise_sizes
from tests.benchmarks.gpu.device import Device
from tests.benchmarks.gpu.networks import FULL
from tests.benchmarks.gpu.prediction import STEPS, measured_gpu, modelled, predict, seconds
from tests.benchmarks.gpu.rows import Found, Results, Row, run_rows
from tests.support.counted_passes import PASSES
from tests.support.cuda_counts import Gpu

CPU = Device(torch.device("cpu"))


def lines(path: Path) -> dict[str, Found]:
    """Read the last line of each row."""
    return {line["row"]: line for line in map(json.loads, path.read_text().splitlines())}


def measured(rows: list[Row], path: Path, seconds: float = 60.0) -> list[str]:
    """Measure rows that are left; returns the status of each that is new."""
    with Results(path) as results:
        found = list(run_rows(rows, results, CPU, time.monotonic() + seconds))
    return [line["status"] for line in found]


def fails(_: Device) -> Found:
    """Raise what a kernel would."""
    raise RuntimeError("CUDA error: misaligned address")


def test_a_row_that_fails_does_not_end_those_after_it(tmp_path: Path) -> None:
    """Its error and where it was raised are its result."""
    path = tmp_path / "results.jsonl"
    rows = [Row("bad", 1.0, fails), Row("good", 1.0, lambda device: {"ms": 2.5})]

    assert measured(rows, path) == ["failed", "ok"]
    found = lines(path)
    assert found["bad"]["error"] == "RuntimeError: CUDA error: misaligned address"
    assert "in fails" in found["bad"]["where"]
    assert found["good"]["ms"] == 2.5


@pytest.mark.parametrize(("begun", "then"), [(1, "ok"), (2, "ended the process")])
def test_the_same_file_goes_on_where_it_ended(tmp_path: Path, begun: int, then: str) -> None:
    """What has a result is not measured again, and a row is begun twice at most."""
    path = tmp_path / "results.jsonl"
    rows = [Row(name, 1.0, lambda device: {}) for name in ("first", "second", "third")]
    measured(rows[:1], path)
    with path.open("a") as file:
        file.write(f'{{"row": "second", "status": "begun", "begun": {begun}}}\n{{"row": "thi')

    assert measured(rows, path) == [then, "ok"]
    assert measured(rows, path) == []


def test_a_row_that_hangs_is_ended(tmp_path: Path) -> None:
    """At the deadline a row is left with an error, and the rows after it are named."""
    rows = [Row("hangs", 1.0, lambda device: time.sleep(600) or {}), Row("after", 1.0, fails)]

    assert measured(rows, tmp_path / "results.jsonl", 0.2) == ["failed", "not reached"]
    assert lines(tmp_path / "results.jsonl")["hangs"]["error"].startswith("TimeoutError")


def test_what_is_not_reached_is_measured_by_the_next_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without time all rows are named; with time the same command measures them."""
    command = ["--device", "cpu", "--out", str(tmp_path / "results.jsonl"), "--rows"]
    command += ["ceilings/launch", "agreement/vae-encoder/fp32"]

    assert main([*command, "--minutes", "0"]) == 0
    assert [line["status"] for line in lines(tmp_path / "results.jsonl").values()] == [
        "ok",  # the machine
        *["not reached"] * 2,
    ]
    assert main(command) == 0
    found = lines(tmp_path / "results.jsonl")
    assert found["ceilings/launch"]["eager_us"] > 0
    assert found["agreement/vae-encoder/fp32"]["status"] == "ok"
    assert "| ceilings/launch | ok |" in capsys.readouterr().out


def test_rows_of_another_size_are_not_mixed(tmp_path: Path) -> None:
    """A file says where its rows come from, and takes none from elsewhere."""
    command = ["--device", "cpu", "--minutes", "0", "--out", str(tmp_path / "results.jsonl")]
    main([*command, "--size", "tiny"])

    with pytest.raises(UserError, match="give another file"):
        main([*command, "--size", "full"])


@pytest.mark.parametrize("wrong", [float("nan"), 1.5])
@pytest.mark.parametrize("where", ["output", "gradient"])
def test_a_wrong_number_is_out_of_tolerance(wrong: float, where: str) -> None:
    """One number among many, in an output or in one gradient, NaN or half too large."""
    reference = Pass(torch.ones(8), {"a": torch.ones(100), "b": torch.ones(4)})
    mine = Pass(reference.output.clone(), {"a": torch.ones(100), "b": torch.ones(4)})
    (mine.output if where == "output" else mine.gradients["b"])[0] = wrong

    assert compared(reference, reference, SMOOTH["fp32"])["status"] == "ok"
    found = compared(mine, reference, SMOOTH["fp32"])
    assert found["status"] == "outside tolerance"
    assert found["worst_gradient"] == ("b" if where == "gradient" else found["worst_gradient"])


def test_a_gradient_of_nothing_is_no_difference() -> None:
    """Rounding of a gradient that should be zero, such as a key's bias, is told by the others."""
    reference = Pass(torch.ones(8), {"a": torch.ones(100), "key.bias": torch.full((4,), 1e-9)})
    mine = Pass(torch.ones(8), {"a": torch.ones(100), "key.bias": torch.full((4,), -1e-9)})

    assert compared(mine, reference, SMOOTH["fp32"])["status"] == "ok"


def test_the_plan_fits_ten_minutes() -> None:
    """Of the full size: rows have names of their own, and take no longer together."""
    rows = all_rows(FULL)

    assert len({row.name for row in rows}) == len(rows)
    assert sum(row.seconds for row in rows) <= 600
    assert depthwise_sizes(FULL)[:2] == [(768, 64), (1536, 64)]


def test_a_table_has_a_line_for_each_precision() -> None:
    """Rows that hold several timings are told one by one."""
    row: dict[str, Any] = {"row": "precision/encode", "status": "ok", "batch": 2}
    told = tables([{**row, "fp32": {"ms": 1234.5}, "bf16": {"ms": 2.5, "peak_gb": 1.25}}])

    assert "| precision/encode/fp32 | ok | 1,234 |" in told
    assert "| precision/encode/bf16 | ok | 2.5 |  |  |  |  |  | 1.25 |" in told


CEILINGS: dict[str, Found] = {
    "machine": {"size": "full"},
    "ceilings/matrix": {"status": "ok", "bf16_tflops": 800.0, "fp32_tflops": 55.0},
    "ceilings/memory": {"status": "ok", "tb_per_s": 3.35},
    "ceilings/launch": {"status": "ok", "eager_us": 5.0, "graph_us": 1.0},
}


def test_a_row_is_told_with_its_model(tmp_path: Path) -> None:
    """By the ceilings of its own file; what is not counted stays as it is."""
    path = tmp_path / "results.jsonl"
    timed = {"status": "ok", "batch": 16, "bf16": {"ms": 116.0}, "fp32": {"ms": 900.0}}
    rows = {**CEILINGS, "precision/encode": timed, "qalign/batch-8": {"status": "ok", "ms": 9.0}}
    path.write_text("".join(json.dumps({"row": n, **row}) + "\n" for n, row in rows.items()))

    with Results(path) as results:
        (told,) = predict(results, time.monotonic() + 60)
    gpu = Gpu(flops=800e12, bandwidth=3.35e12, launch=5e-6, flops_float32=55e12)
    predicted = 1e3 * gpu.eager(PASSES["encode"].traced().kernels)
    assert told["bf16"]["predicted_ms"] == pytest.approx(predicted)
    assert told["bf16"]["over_prediction"] == pytest.approx(116 / predicted)
    assert "predicted_ms" not in told["fp32"]
    with Results(path) as results:
        assert not list(predict(results, time.monotonic() + 60))


def test_compiling_and_a_graph_are_in_the_model() -> None:
    """Fewer kernels, and shorter launches; the ways are told by the row's name."""
    gpu, found = measured_gpu(CEILINGS), {"batch": 1}
    assert gpu is not None
    times = {}
    for way in ("eager", "graph", "compiled"):
        model = modelled(f"face/{way}/batch-1", found)
        assert model is not None
        model = replace(model, parts=model.parts[-1:])  # the decoder alone is counted quickly
        launch = CEILINGS["ceilings/launch"][model.launch] * 1e-6
        times[way] = seconds(model, replace(gpu, launch=launch))

    assert times["eager"] >= times["graph"] > times["compiled"] > 0


@pytest.mark.slow
def test_every_counted_row_has_its_model() -> None:
    """All rows that run one of the networks at full size in bfloat16."""
    counted = [row.name for row in all_rows(FULL) if modelled(row.name, {"batch": 8})]
    kinds = {name.partition("/")[0] for name in counted}

    assert kinds == {name.partition("/")[0] for name in STEPS} | {"sampler", "face", "precision"}
    assert "vae-step/eager/fp32" not in counted
    gpu = measured_gpu(CEILINGS)
    assert gpu is not None
    for name in counted:
        model = modelled(name, {"batch": 8})
        assert model is not None
        assert seconds(model, gpu) > 0


@pytest.mark.slow
def test_every_row_runs(tmp_path: Path) -> None:
    """All of them at tiny size: a minute of a core."""
    command = ["--device", "cpu", "--minutes", "60", "--out", str(tmp_path / "results.jsonl")]
    assert main(command) == 0
    assert {line["status"] for line in lines(tmp_path / "results.jsonl").values()} == {"ok"}
