"""Which kernels a network would start on CUDA, and what they would cost, counted without a GPU.

A network runs on tensors of the meta device under `tests.support.cuda_rules`. Each operator that
arrives below autograd and is no view becomes one kernel, or the several that CUDA starts for it:

- a convolution copies what is not in the memory format that it chose, and adds its bias by itself,
  unless it is per channel and not in channels-last memory;
- a convolution backwards is one kernel for each gradient, a layer norm two;
- norms and softmax copy an input that is not contiguous;
- the gradient of a slice, padding and `index_add` fill or copy their result first.

What a step does after its backward pass (reductions over ranks, clipping, the update) is left out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from tests.support.cuda_rules import HALVES, on_cuda

aten = torch.ops.aten
MAP = 1 << 20  # bytes of the smallest float32 map that counts
FREE = {  # start no kernel, though they are no views by their schema
    aten._unsafe_view,
    aten.lift_fresh,
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten._reshape_alias,
}
FILLING = {aten.slice_backward, aten.select_backward, aten.constant_pad_nd, aten.index_add}
COPIES = {aten.clone, aten.copy_, aten.copy, aten._to_copy, aten.contiguous}
CONTIGUOUS = {  # how many of the first arguments are copied where they are not contiguous
    aten.native_layer_norm: 1,
    aten.native_layer_norm_backward: 2,
    torch.ops.roofline.rms_norm: 1,
    torch.ops.roofline.rms_norm_backward: 2,
    aten._softmax: 1,
    aten._log_softmax: 1,
}


class Part(NamedTuple):
    """What a kernel reads or writes of one storage."""

    storage: int
    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel.

    Attributes:
        name: of the operator, or what is done for it.
        reads: what it reads, once each.
        writes: what it writes.
        flops: of products of matrices, convolutions and attention; 0 of all else.
        is_half: its products are of 16 bits.
        kind: "float32 map", "layout copy", "weight cast", "host copy" or "".
    """

    name: str
    reads: tuple[Part, ...]
    writes: tuple[Part, ...]
    flops: int = 0
    is_half: bool = True
    kind: str = ""

    @property
    def size(self) -> int:
        """Bytes that it moves."""
        return sum(part.size for part in (*self.reads, *self.writes))


@dataclass(frozen=True, slots=True)
class Counts:
    """What is guarded, of one pass.

    A *float32 map* is a first result in float32 of 1 MiB or more, not of a weight's shape, in a
    pass of which autocast makes the products in 16 bits. A *layout copy* changes the order in
    memory and nothing else. A *weight cast* changes the type of a parameter, a *host copy* brings
    something to the GPU. A kernel is one of these at most; copies come first.
    """

    kernels: int
    float32_maps: int
    layout_copies: int
    weight_casts: int
    host_copies: int
    attention: str
    """How many calls took each path, such as "flash 12, efficient 20"."""


@dataclass(frozen=True, slots=True)
class Traced:
    """The kernels of a pass, in their order, and the paths of its attention with the reasons."""

    kernels: list[Kernel]
    attention: list[tuple[str, str]]

    def counts(self) -> Counts:
        """Add up what is guarded."""
        kinds = [kernel.kind for kernel in self.kernels]
        paths = [path for path, _ in self.attention]
        return Counts(
            kernels=len(kinds),
            float32_maps=kinds.count("float32 map"),
            layout_copies=kinds.count("layout copy"),
            weight_casts=kinds.count("weight cast"),
            host_copies=kinds.count("host copy"),
            attention=", ".join(f"{path} {paths.count(path)}" for path in sorted(set(paths))),
        )


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU by its numbers. The defaults are what an H100 reaches of its peaks, as a guess."""

    flops: float = 800e12
    """Operations a second of products of 16 bits."""
    bandwidth: float = 3.35e12
    """Bytes a second of its memory."""
    launch: float = 5e-6
    """Seconds between the starts of two kernels."""
    flops_float32: float = 55e12
    """Operations a second of products in float32, which PyTorch makes without tensor cores."""

    def products(self, kernels: Sequence[Kernel]) -> float:
        """Return the seconds of all operations at the peak."""
        return sum(self._product(kernel) for kernel in kernels)

    def eager(self, kernels: Sequence[Kernel]) -> float:
        """Return the seconds of all kernels, each the most of operations, bytes and launch."""
        return sum(
            max(self._product(kernel), kernel.size / self.bandwidth, self.launch)
            for kernel in kernels
        )

    def fused(self, kernels: Sequence[Kernel]) -> float:
        """Return the seconds of `fused_kernels`, without launches, as in a CUDA graph."""
        return sum(
            max(self._product(kernel), kernel.size / self.bandwidth)
            for kernel in fused_kernels(kernels)
        )

    def _product(self, kernel: Kernel) -> float:
        return kernel.flops / (self.flops if kernel.is_half else self.flops_float32)


def traced(
    run: Callable[[], object], network: nn.Module, dtype: torch.dtype | None = torch.bfloat16
) -> Traced:
    """Count the kernels that a call would start on CUDA.

    It is called once before, without gradients: what a network keeps for a size of map is there.

    Args:
        run: calls ``network``, on the meta device; it enters `torch.autocast` for "cuda" itself.
        network: whose parameters are the weights.
        dtype: of autocast inside ``run``; None if there is none, and then no map is too wide.
    """
    with on_cuda(), torch.no_grad():
        run()
    with on_cuda() as rules, CountKernels(network, dtype in HALVES) as counter:
        run()
    return Traced(counter.kernels, rules.attention)


class CountKernels(TorchDispatchMode):
    """Notes the kernels of all operators on the meta device inside its context.

    Args:
        network: whose parameters are the weights.
        is_half: large results in float32 are counted.
    """

    def __init__(self, network: nn.Module, is_half: bool) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self._is_half = is_half
        self._numbers = WeakIdKeyDictionary()
        self._next = 0
        self._weights = {self._part(value).storage for value in network.parameters()}
        shapes = {tuple(value.shape) for value in network.parameters()}
        self._shapes = shapes | {shape[::-1] for shape in shapes}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and note its kernels."""
        with torch._C.DisableTorchFunction():  # below autograd CUDA's rules are done with
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket is aten.convolution:  # on the meta device it forgets the format
                out = torch.empty_like(out, memory_format=_convolution_format(*args[:2]))
            made = _tensors(out)
            if made and made[0].is_meta and not (func.is_view or func.overloadpacket in FREE):
                self._kernels(func, args, kwargs or {}, out)
        return out

    def _kernels(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        match func.overloadpacket:
            case aten.convolution | aten.convolution_backward if True in args[-6:-2]:
                raise NotImplementedError("transposed convolutions are not counted")
            case aten.convolution:
                self._convolution(args, out)
            case aten.convolution_backward:
                self._convolution_backward(args, out)
            case aten.native_layer_norm_backward | torch.ops.roofline.rms_norm_backward:
                self._norm_backward(func, args, out)
            case _:
                self._operator(func, args, kwargs, out)

    def _operator(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Note an operator that is one kernel, or one after a copy or a filling."""
        packet, inputs = func.overloadpacket, _tensors([*args, *kwargs.values()])
        for given in inputs[: CONTIGUOUS.get(packet, 0)]:
            self._copied(given, torch.contiguous_format)
        if packet in FILLING:
            self._note("fill", (), out)
        count = flop_registry.get(packet)
        flops = count(*args, **kwargs, out_val=out) if count else 0
        if packet is aten.copy_:
            inputs = inputs[1:]  # of the first nothing is read
        kind = self._kind(inputs, out) if packet in COPIES else ""
        self._note(_short(func), inputs, out, flops, kind)

    def _convolution(self, args: Any, out: Tensor) -> None:
        given, weight, bias = args[:3]
        form = _convolution_format(given, weight)
        self._copied(given, form)
        self._copied(weight, form)
        flops = _convolution_flops(weight, out)
        is_own = _has_own_kernel(given, weight, args[-1], form)
        with_bias = [bias] if is_own and bias is not None else []
        self._note("convolution", [given, weight, *with_bias], out, flops)
        if bias is not None and not is_own:
            self._note("bias of convolution", [out, bias], out)

    def _convolution_backward(self, args: Any, out: Any) -> None:
        grad, given, weight = args[:3]
        wanted = args[-1]
        form = _convolution_format(given, weight)
        for each in (grad, given, weight):
            self._copied(each, form)
        products = {"input": [grad, weight], "weight": [grad, given]}
        for place, (name, inputs) in enumerate(products.items()):
            if wanted[place]:
                flops = _convolution_flops(weight, grad)
                self._note(f"convolution backward, {name}", inputs, out[place], flops)
        if wanted[2]:
            self._note("convolution backward, bias", [grad], out[2])

    def _norm_backward(self, func: Any, args: Any, out: Any) -> None:
        for given in args[:2]:
            self._copied(given, torch.contiguous_format)
        self._note(_short(func), _tensors(args), out[0])
        if any(tensor is not None and tensor.numel() for tensor in out[1:]):
            self._note(f"{_short(func)}, weight", args[:2], out[1:])

    def _copied(self, given: Tensor, form: torch.memory_format) -> None:
        """Note the copy that an operator makes of an input in another memory format."""
        if not given.is_contiguous(memory_format=form):
            made = Part(self._number(), _size(given))
            self.kernels.append(
                Kernel("copy inside", (self._part(given),), (made,), kind="layout copy")
            )

    def _note(
        self, name: str, inputs: Sequence[Tensor], out: Any, flops: int = 0, kind: str = ""
    ) -> None:
        reads = tuple({part.storage: part for part in map(self._part, inputs)}.values())
        writes = tuple(map(self._part, _tensors(out)))
        if not kind and self._is_wide(_tensors(out)[0]):
            kind = "float32 map"  # what follows a first result are statistics
        is_half = any(given.dtype in HALVES for given in inputs)
        self.kernels.append(Kernel(name, reads, writes, int(flops), is_half, kind))

    def _kind(self, inputs: Sequence[Tensor], out: Tensor) -> str:
        """Tell what a copy is for."""
        given = inputs[0]
        if not given.is_meta:
            return "host copy"
        if given.dtype != out.dtype:
            return "weight cast" if self._part(given).storage in self._weights else ""
        is_moved = given.shape == out.shape and given.stride() != out.stride()
        return "layout copy" if is_moved else ""

    def _is_wide(self, made: Tensor) -> bool:
        is_large = made.numel() * made.itemsize >= MAP and tuple(made.shape) not in self._shapes
        return self._is_half and made.dtype == torch.float32 and is_large

    def _part(self, tensor: Tensor) -> Part:
        storage = tensor.untyped_storage()
        if storage not in self._numbers:
            self._numbers[storage] = self._number()
        return Part(self._numbers[storage], _size(tensor))

    def _number(self) -> int:
        self._next += 1
        return self._next


def fused_kernels(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Join the kernels that a compiler could fuse, by a simple and generous rule.

    Products of matrices, convolutions and attention stay as they are. Of the kernels between two
    of them, those that hang together by what they read or write become one: it reads once what
    comes from elsewhere, and writes what someone else reads, or nobody. That reductions may need a
    pass of their own, and that changes of layout are not always fused, is left out of account.
    """
    readers: dict[int, list[int]] = {}
    for place, kernel in enumerate(kernels):
        for part in kernel.reads:
            readers.setdefault(part.storage, []).append(place)
    joined: list[Kernel] = []
    run: list[int] = []
    for place, kernel in enumerate(kernels):
        if not kernel.flops:
            run.append(place)
            continue
        joined += [*_joined(kernels, run, readers), kernel]
        run = []
    return joined + _joined(kernels, run, readers)


def _joined(
    kernels: Sequence[Kernel], run: Sequence[int], readers: dict[int, list[int]]
) -> list[Kernel]:
    """Fuse the kernels at the places ``run``, which follow each other."""
    made = []
    for group in _groups(kernels, run):
        inside, reads, writes = set(group), {}, {}
        for place in group:
            for part in kernels[place].reads:
                if part.storage not in writes:
                    reads.setdefault(part.storage, part)
            writes |= {part.storage: part for part in kernels[place].writes}
        kept = tuple(
            part
            for storage, part in writes.items()
            if not readers.get(storage) or not inside.issuperset(readers[storage])
        )
        made.append(Kernel("fused", tuple(reads.values()), kept))
    return made


def _groups(kernels: Sequence[Kernel], run: Sequence[int]) -> list[list[int]]:
    """Part places into those that share a storage, directly or by others."""
    groups: list[tuple[set[int], list[int]]] = []
    for place in run:
        touched = {part.storage for part in (*kernels[place].reads, *kernels[place].writes)}
        members, apart = [place], []
        for storages, others in groups:
            if storages & touched:
                touched |= storages
                members = others + members
            else:
                apart.append((storages, others))
        groups = [*apart, (touched, members)]
    return [sorted(members) for _, members in groups]


def _convolution_format(given: Tensor, weight: Tensor) -> torch.memory_format:
    """Return the memory format in which CUDA convolves: channels-last if one of both is."""
    forms = {suggest_memory_format(given), suggest_memory_format(weight)}
    is_last = torch.channels_last in forms
    return torch.channels_last if is_last else torch.contiguous_format


def _convolution_flops(weight: Tensor, out: Tensor) -> int:
    """Count each multiplication and each addition; PyTorch's own count backward forgets groups."""
    return 2 * weight.numel() * out.numel() // out.shape[1]


def _has_own_kernel(given: Tensor, weight: Tensor, groups: int, form: torch.memory_format) -> bool:
    """Return whether PyTorch's own kernel convolves each channel by itself; else it is cuDNN's."""
    is_per_channel = 1 < groups == given.shape[1] and weight.shape[0] % groups == 0
    is_cudnns = form == torch.channels_last or given.dtype == torch.float16
    return is_per_channel and not is_cudnns


def _size(tensor: Tensor) -> int:
    """Return the bytes of a tensor, each that stands for several counted once."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.itemsize * math.prod(side if stride else 1 for side, stride in sides)


def _tensors(values: Any) -> list[Tensor]:
    """Return the tensors among values, in lists and tuples too."""
    if isinstance(values, Tensor):
        return [values]
    if not isinstance(values, (list, tuple)):
        return []
    return [tensor for value in values for tensor in _tensors(value)]


def _short(func: Any) -> str:
    return str(func.overloadpacket).removeprefix("aten.")
