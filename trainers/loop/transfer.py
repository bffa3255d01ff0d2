"""Numbers on their way between the host and a GPU, for which neither waits before it must.

A copy from or to ordinary memory makes the host wait until the GPU has done all that it was given.
From or to page-locked memory it is queued like any other work.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Copy values of the host to a device, without waiting for it."""
    on_host = values.pin_memory() if device.type == "cuda" else values
    return on_host.to(device, non_blocking=True)


def asked_for(values: Tensor) -> Callable[[], list[float]]:
    """Begin to copy values [N] to the host; returns what waits for the copy and gives them.

    It waits for what was queued before this call, and for nothing that was queued after it.
    """
    if values.device.type != "cuda":
        found = values.tolist()
        return lambda: found
    on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    on_host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def numbers() -> list[float]:
        copied.synchronize()
        return on_host.tolist()

    return numbers
