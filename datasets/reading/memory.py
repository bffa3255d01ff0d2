"""Memory for batches, which is used again when a batch is no longer needed."""

import math
import weakref
from collections import defaultdict, deque
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIGNMENT = 64  # bytes of a cache line: the kernel copies into aligned memory faster


class Memory:
    """A source of tensors that batches are read into; writing to new pages costs more than reading.

    Args:
        kind: `reused` hands a block out again once no tensor views it; `pinned` leaves that to
            PyTorch, which also knows which copies to the GPU are under way; `shared` can be sent
            to another process, and is new each time.
    """

    def __init__(self, kind: Literal["reused", "pinned", "shared"]) -> None:
        self.kind = kind
        self._free: defaultdict[Any, deque[npt.NDArray[Any]]] = defaultdict(deque)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind,)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor with arbitrary content."""
        if self.kind == "pinned":
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        if self.kind == "shared":  # as PyTorch's own default_collate does in a worker
            size = math.prod(shape) * dtype.itemsize
            storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
            return torch.empty(0, dtype=torch.uint8).set_(storage).view(dtype).view(shape)
        free = self._free[shape, dtype]
        try:
            block = free.pop()
        except IndexError:
            block = _aligned(shape, dtype)
        lease = block.view()  # the storage holds it as long as any tensor views that storage
        weakref.finalize(lease, free.append, block).atexit = False
        return torch.from_numpy(lease)


def _aligned(shape: tuple[int, ...], dtype: torch.dtype) -> npt.NDArray[Any]:
    """Return fresh memory. NumPy asks for large pages: a quarter of the time to touch them."""
    size = math.prod(shape) * dtype.itemsize
    block = np.empty(size + ALIGNMENT, np.uint8)
    block = block[-block.ctypes.data % ALIGNMENT :][:size]
    return torch.from_numpy(block).view(dtype).view(shape).numpy()
