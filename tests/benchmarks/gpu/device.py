"""One device: its clock, its memory, its precisions, and what was measured of its ceilings."""

import contextlib
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn

RUNS = 5  # counted runs of a call, at least
MOST_RUNS = 30
WORTH_S = 0.5  # seconds of counted runs; short calls are repeated so often


@dataclass
class Ceilings:
    """What the device does at most, measured by the first rows; None until then."""

    flops: float | None = None
    """Of a product of bfloat16 matrices, a second."""
    bandwidth: float | None = None
    """Bytes read and written by a copy, a second."""
    launch: float | None = None
    """Seconds from one kernel to the next in an eager loop of the smallest."""


@dataclass
class Device:
    """Where rows run."""

    torch: torch.device
    ceilings: Ceilings = field(default_factory=Ceilings)

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU of NVIDIA's; otherwise a CPU, which only tries the code."""
        return self.torch.type == "cuda"

    @classmethod
    def named(cls, name: str) -> Self:
        """Take the device of this name, such as ``cuda`` or ``cpu``, for this process."""
        device = torch.device(name)
        if device.type == "cuda":
            device = torch.device("cuda", device.index or 0)
            torch.cuda.set_device(device)
        return cls(device)

    def name(self) -> str:
        """Return the GPU's name; of a CPU its kind."""
        return torch.cuda.get_device_name(self.torch) if self.is_cuda else platform.machine()

    def facts(self) -> dict[str, Any]:
        """Return what a GPU is, as JSON values."""
        if not self.is_cuda:
            return {}
        properties = torch.cuda.get_device_properties(self.torch)
        return {
            "memory_gb": properties.total_memory / 1e9,
            "multiprocessors": properties.multi_processor_count,
            "capability": list(torch.cuda.get_device_capability(self.torch)),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }

    def lacking(self, memory_gb: float) -> str:
        """Say why a row that needs so much memory, in 1e9 bytes, cannot run; empty if it can."""
        if not self.is_cuda:
            return ""
        free = torch.cuda.mem_get_info(self.torch)[0] / 1e9
        if memory_gb <= free:
            return ""
        return f"it needs about {memory_gb:.0f} GB of the device, of which {free:.0f} GB are free"

    def fitting(self, batches: tuple[int, ...], gb_a_sample: float) -> int:
        """Return the first of several batch sizes whose samples fit the free memory, or the last.

        Args:
            batches: from the most wanted down.
            gb_a_sample: memory of a sample, in 1e9 bytes.
        """
        fits = (batch for batch in batches if not self.lacking(batch * gb_a_sample))
        return next(fits, batches[-1])

    def tidy(self) -> None:
        """Give back what a row has left behind: memory, compiled code."""
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        if self.is_cuda:
            gc.collect()
            if self.is_alive():
                torch.cuda.empty_cache()

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def is_alive(self) -> bool:
        """Tell whether the device still computes: some errors of a kernel end a whole process."""
        try:
            return bool(torch.ones(1, device=self.torch).add(1).item() == 2)
        except RuntimeError:
            return False

    def timed(self, call: Callable[[], object]) -> dict[str, Any]:
        """Time a call: by CUDA's events on a GPU; on a CPU, where code is tried, once by the clock.

        Returns:
            ``ms``, the median of at least five runs, and their range; ``first_s``, the seconds of
            the first call, which compiles and loads kernels and is not counted; ``peak_gb``, the
            most memory of PyTorch's tensors on a GPU since before that, in 1e9 bytes.
        """
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.torch)
        first, runs = self._once(call), 1
        if self.is_cuda:
            runs = max(RUNS, min(MOST_RUNS, int(WORTH_S * 1e3 / max(1e-3, self._once(call)))))
        spent = [self._once(call) for _ in range(runs)]
        found: dict[str, Any] = {
            "ms": statistics.median(spent),
            "ms_range": [min(spent), max(spent)],
            "runs": len(spent),
            "first_s": first / 1e3,
        }
        if self.is_cuda:
            found["peak_gb"] = torch.cuda.max_memory_allocated(self.torch) / 1e9
        return found

    def _once(self, call: Callable[[], object]) -> float:
        """Return the milliseconds of one call, launches included."""
        if not self.is_cuda:
            begun = time.perf_counter()
            call()
            return (time.perf_counter() - begun) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def rated(self, timing: dict[str, Any], flops: float, samples: int) -> dict[str, Any]:
        """Add to a timing the samples a second and, of its counted operations, the rate.

        Args:
            timing: of `timed`.
            flops: of the whole call; a multiplication and an addition are two.
            samples: in the call.
        """
        seconds = timing["ms"] / 1e3
        rates = {"samples_per_s": samples / seconds, "tflops": flops / seconds / 1e12}
        if self.ceilings.flops:
            rates["share_of_ceiling"] = flops / seconds / self.ceilings.flops
        return {**timing, **rates}

    def compile(self, *networks: nn.Module) -> None:
        """Compile the blocks of networks; on a CPU, where code is tried, they are only captured."""
        from models import compilation

        if not self.is_cuda:
            compilation.BACKEND = "eager"
        for network in networks:
            compilation.compile_blocks(network)

    @contextlib.contextmanager
    def computing(self, precision: str) -> Iterator[None]:
        """Compute a block in ``fp32``, ``tf32`` or ``bf16``, which is autocast over float32.

        Beside autocast, what stays in float32 is computed as PyTorch does by default: convolutions
        in TF32, products of matrices not. ``fp32`` forbids TF32, ``tf32`` allows it in both.
        """
        flags = torch.backends.cudnn, torch.backends.cuda.matmul
        before = [flag.allow_tf32 for flag in flags]
        if precision != "bf16":
            for flag in flags:
                flag.allow_tf32 = precision == "tf32"
        try:
            with torch.autocast(self.torch.type, torch.bfloat16, enabled=precision == "bf16"):
                yield
        finally:
            for flag, value in zip(flags, before, strict=True):
                flag.allow_tf32 = value

    def seeded(self, build: Callable[[], Any]) -> Any:
        """Build networks with weights drawn on the device from one seed.

        The process' generators are as they were on return.
        """
        with torch.random.fork_rng(devices=[self.torch] if self.is_cuda else []), self.torch:
            torch.manual_seed(0)
            return build()
