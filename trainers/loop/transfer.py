"""Numbers on their way from a GPU to the host, which waits for them no sooner than it must.

A copy to ordinary memory makes the host wait until the GPU has done all that it was given. To
page-locked memory it is queued like any other work; `models.transfer` is the other way.
"""

from collections.abc import Callable

import torch
from torch import Tensor


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
