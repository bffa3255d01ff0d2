"""How a worker computes: in so many threads, by the same kernels in every run, on which device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from datasets.decoding import single_threaded


def same_in_every_run(threads: int, *, tf32: bool = False) -> None:
    """Fix what the bits of a result could depend on beside its inputs, for this process.

    Args:
        threads: of PyTorch on the CPU; libraries that decode get one.
        tf32: whether products of matrices on NVIDIA GPUs are computed in TF32.
    """
    single_threaded()
    torch.set_num_threads(threads)
    # no trials of algorithms, whose winner differs from run to run
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    _allow_tf32(tf32)


@contextmanager
def exactly() -> Iterator[None]:
    """Compute products of float32 in float32 while the block runs, also on NVIDIA GPUs."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    _allow_tf32(False)
    try:
        yield
    finally:
        _allow_tf32(allowed)


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def sent(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device.

    To a GPU it goes from page-locked memory, and the host does not wait for it: from other memory a
    copy waits until the GPU has done all that it was given before.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
