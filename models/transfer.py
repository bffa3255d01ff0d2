"""Values on their way to a GPU, for which the host does not wait.

A copy from ordinary memory makes the host wait until the GPU has done all that it was given before.
From page-locked memory it is queued like any other work.
"""

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Copy values of the host to a device; those that are there already stay as they are."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
