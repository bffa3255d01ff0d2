"""What a network costs, counted without running it, and what the device that runs it can do."""

import copy
import functools
import resource
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from infra.distributed import gathered, world_size
from models.flops import counted
from trainers.loop.config import Precision

C = TypeVar("C")
A100: dict[Precision, float] = {"bf16": 312, "fp32": 156}
PEAKS: dict[str, dict[Precision, float]] = {
    # TFLOP/s of dense matrices, by the name that CUDA reports. `fp32` is the rate of TF32, in which
    # PyTorch convolves float32 by default. Where NVIDIA states a rate with sparsity, here is half.
    # NVIDIA A100 Tensor Core GPU, datasheet 1758950-r4
    "NVIDIA A100-SXM4-40GB": A100,
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA A100-PCIE-40GB": A100,
    "NVIDIA A100 80GB PCIe": A100,
    # NVIDIA H100 Tensor Core GPU, datasheet: SXM and NVL; PCIe is in that of 2022
    "NVIDIA H100 80GB HBM3": {"bf16": 989.5, "fp32": 494.5},
    "NVIDIA H100 NVL": {"bf16": 835.5, "fp32": 417.5},
    "NVIDIA H100 PCIe": {"bf16": 756.5, "fp32": 378},
    # NVIDIA H200 Tensor Core GPU, datasheet
    "NVIDIA H200": {"bf16": 989.5, "fp32": 494.5},
    "NVIDIA H200 NVL": {"bf16": 835.5, "fp32": 417.5},
    # NVIDIA L40S GPU, datasheet; NVIDIA L4 Tensor Core GPU, datasheet
    "NVIDIA L40S": {"bf16": 362.05, "fp32": 183},
    "NVIDIA L4": {"bf16": 121, "fp32": 60},
    # NVIDIA Ada GPU architecture, whitepaper v2.1, appendix A: accumulating in FP32
    "NVIDIA GeForce RTX 4090": {"bf16": 165.2, "fp32": 82.6},
    # NVIDIA Ampere GA102 GPU architecture, whitepaper v2, appendix A: accumulating in FP32
    "NVIDIA GeForce RTX 3090": {"bf16": 71, "fp32": 35.6},
}


def forward_flops(build: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> int:
    """Count the floating-point operations of a forward pass; a multiplication is one, so is a sum.

    Args:
        build: makes the network; nothing is allocated for it.
        shapes: of its inputs.
    """
    with torch.device("meta"):
        return counted(build(), *(torch.empty(shape) for shape in shapes))


@functools.cache
def flops_of(build: Callable[[C], nn.Module], config: C, *shapes: tuple[int, ...]) -> int:
    """Count as `forward_flops` the network that ``build`` makes of ``config``, once in a process.

    To count is to walk the whole network in Python, which for a small one takes longer than to
    build and to run it.
    """
    return forward_flops(lambda: build(config), *shapes)


def encoder_flops(vae: Any, shape: tuple[int, ...]) -> int:
    """Count an encoder's forward pass on images of this shape."""
    encoder = copy.deepcopy(vae.encoder if hasattr(vae, "encoder") else vae.vae.encoder).to("meta")
    return forward_flops(lambda: encoder, shape)


def memory_gb(parameters: int, ranks: int, zero_stage: int, averages: int) -> dict[str, float]:
    """Return what a rank holds without activations, all float32, in 1e9 bytes.

    Args:
        parameters: trained.
        ranks: over which ZeRO shards them.
        zero_stage: 0 to 3.
        averages: of the weights; one more copy is validated.
    """
    gb = 4 * parameters / 1e9
    shares = {"weights": (1, 3), "gradients": (1, 2), "moments": (2, 1)}  # copies, sharded from
    sharded = {
        name: copies * gb / (ranks if zero_stage >= least else 1)
        for name, (copies, least) in shares.items()
    }
    return {**sharded, "averages": (averages + 1) * gb}


def device_name(device: torch.device) -> str:
    """Return the name that CUDA reports, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_tflops(device: torch.device, precision: Precision) -> float | None:
    """Look up what a device computes at most, TFLOP/s; None for CPUs and GPUs not in `PEAKS`."""
    if device.type != "cuda":
        return None
    return PEAKS.get(device_name(device), {}).get(precision)


def job_peak_tflops(device: torch.device, precision: Precision) -> float | None:
    """Add the peaks of all ranks' devices up, in TFLOP/s; None if one is unknown. All call it."""
    peaks = [peak for peak in gathered(peak_tflops(device, precision)) if peak is not None]
    return sum(peaks) if len(peaks) == world_size() else None


def peak_memory_gb(device: torch.device) -> float:
    """Return the most memory that this process has held so far, in 1e9 bytes.

    On CUDA that of PyTorch's tensors on the device; on a CPU the process' own, resident.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # of getrusage: bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
