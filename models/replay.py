"""A velocity network whose evaluations are recorded once and then replayed.

An evaluation of the published network is about two thousand kernels. For one face they are so small
that a GPU waits for the host, which launches them one by one. A CUDA graph launches them together.

A graph works on the memory that it was recorded with. So x_t, t and the condition are copied into
buffers that stay where they are, and the velocity is copied out of one. Nothing else of a sampler
knows of it: the time is a value in a buffer, and the update of x_t stays outside, in float32.

Only `cuda_graph` needs a GPU. The buffers are the same whatever records and replays.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Compute = Callable[[], Tensor]
"""A computation on tensors that stay where they are; its result does too, if it was recorded."""
Record = Callable[[Compute], Compute]
"""Does a computation a first time, and returns what repeats it."""
WARM_UPS = 3  # evaluations before the recorded one, in which libraries choose kernels and compile
MOST = 4  # recordings at a time: sizes 1, 2, 4 and 8 of a batch


def cuda_graph(compute: Compute) -> Compute:
    """Record a computation as a CUDA graph.

    The first evaluations run on a stream of their own, as PyTorch wants it before a recording.
    Other threads may use CUDA meanwhile.
    """
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            compute()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = compute()

    def replayed() -> Tensor:
        graph.replay()
        return result

    return replayed


class Replayed(nn.Module):
    """A frozen velocity network, v(x_t, t, condition or None), by recordings.

    There is a recording for each combination of shapes, types and autocast that is met, and when
    there are too many, the one that was not used for longest is dropped with its memory. A network
    that is moved or gets other weight tensors afterwards needs a new `Replayed`.

    Args:
        network: without randomness, and without a wait for the device.
        record: what records and replays.
        most: recordings that are kept at a time.
    """

    def __init__(
        self, network: nn.Module, record: Record = cuda_graph, *, most: int = MOST
    ) -> None:
        super().__init__()
        self.network = network
        self._record, self._most = record, most
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()

    @torch.no_grad()
    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Evaluate the velocity; the result is the caller's own and stays as it is."""
        inputs = (x_t, t) if condition is None else (x_t, t, condition)
        key = (_autocast(x_t.device.type), *((x.shape, x.dtype, x.device) for x in inputs))
        if key not in self._recordings:
            while len(self._recordings) >= self._most:
                self._recordings.popitem(last=False)
            self._recordings[key] = _Recording(self.network, inputs, self._record)
        self._recordings.move_to_end(key)
        return self._recordings[key](inputs)


class _Recording:
    """The buffers of one combination of shapes, and what replays on them."""

    def __init__(self, network: nn.Module, inputs: Sequence[Tensor], record: Record) -> None:
        self._inputs = buffers = [x.clone() for x in inputs]
        # not of self: a cycle would keep the memory until Python looks for cycles
        self._replay = record(lambda: network(*buffers))

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        for buffer, x in zip(self._inputs, inputs, strict=True):
            buffer.copy_(x)
        return self._replay().clone()


def _autocast(device: str) -> torch.dtype | None:
    """Return what autocast casts to here, if it is on."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
