"""How fast steps are, against what the devices could do, and how much memory they take."""

from typing import get_args

import pytest
import torch

from trainers.loop.config import Precision
from trainers.loop.cost import PEAKS, flops_of, peak_memory_gb, peak_tflops
from trainers.loop.log import StepAverages

CPU = torch.device("cpu")


def averages(seconds: float, monkeypatch: pytest.MonkeyPatch) -> StepAverages:
    """Return what four steps measured that took so long together."""
    clock = iter((10.0, 10.0 + seconds))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    found = StepAverages(0)
    for loss in (1.0, 2.0, 3.0, 4.0):
        found.add({"loss": loss}, 1e-4)
    return found


def test_speed_is_counted_operations_over_the_time_of_the_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four steps of 3 TFLOP in 2 s are 6 TFLOP/s, 1 % of devices of 600."""
    found = averages(2.0, monkeypatch).metrics(batch=8, flops=3 * 10**12, peak=600.0)

    assert found["speed/tflops_per_second"] == pytest.approx(6)
    assert found["speed/share_of_peak"] == pytest.approx(0.01)
    assert found["speed/step_seconds"] == pytest.approx(0.5)


def test_operations_are_counted_once_for_a_configuration_and_shapes() -> None:
    """A layer of 3 by 4 weights on 5 rows multiplies and adds 60 times each; it is built once."""
    built: list[int] = []

    def build(width: int) -> torch.nn.Linear:
        built.append(width)
        return torch.nn.Linear(3, width, bias=False)

    assert [flops_of(build, 4, (5, 3)) for _ in range(3)] == [2 * 60] * 3
    assert flops_of(build, 4, (10, 3)) == 4 * 60
    assert flops_of(build, 8, (5, 3)) == 4 * 60
    assert built == [4, 4, 8]


def test_an_unknown_device_has_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share is absent, not guessed: of a CPU, of a GPU that is not listed, of part of one."""
    assert peak_tflops(CPU, "bf16") is None
    names = iter(("NVIDIA H200", "NVIDIA GeForce RTX 4090 D", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: next(names))
    peaks = [peak_tflops(torch.device("cuda"), "bf16") for _ in range(3)]
    found = averages(2.0, monkeypatch).metrics(batch=8, flops=10**12, peak=None)

    assert peaks == [989.5, None, None]
    assert "speed/share_of_peak" not in found


def test_every_listed_device_has_a_peak_for_each_precision() -> None:
    """The tensor cores take bf16 about twice as fast as TF32."""
    for name, peaks in PEAKS.items():
        assert peaks.keys() == set(get_args(Precision)), name
        assert peaks["bf16"] / peaks["fp32"] == pytest.approx(2, rel=0.02), name


def test_peak_memory_covers_what_was_held_and_let_go() -> None:
    """Half a gigabyte of ones shows in the peak after it is freed."""
    held = torch.ones(2**26, dtype=torch.float64).sum().item()

    assert peak_memory_gb(CPU) >= 8 * held / 1e9


@pytest.mark.gpu
def test_peak_memory_of_cuda_is_that_of_its_tensors() -> None:
    """The host's memory does not count."""
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    torch.ones(2**25, device=device)

    assert peak_memory_gb(device) == pytest.approx((before + 2**27) / 1e9, rel=1e-3)
