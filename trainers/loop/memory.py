"""The memory that a step needs, counted before the first one.

The loss of so many samples goes forward and backward on fake tensors, which have shapes and no
values: no memory is taken, and of a network of full size it takes seconds on any machine. What is
counted is the bytes of all tensors that live at once. That is the step as it is without
torch.compile, which may keep less; the allocator's reserve and the workspaces of cuDNN come on top.
"""

import copy
import dataclasses
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from datasets.reading.order import Layout
from models.noise import Purpose
from models.rectified_flow import TimeDistribution
from trainers.loop.batches import BatchPlan
from trainers.loop.config import EngineConfig, TrainerConfig
from trainers.loop.cost import memory_gb
from trainers.loop.engine import autocast
from trainers.loop.noise import Noise
from trainers.loop.task import Task

SHARE = 0.9  # of a GPU's memory that tensors may take; the rest is the allocator's, and cuDNN's
CHECKPOINTING = ("activation_checkpointing", "recompute")  # as networks and their parts call it


class Plain:
    """A model that runs by itself as it does in `trainers.loop.engine.Engine`."""

    def __init__(self, module: nn.Module, config: EngineConfig, device: torch.device) -> None:
        self.module, self.config, self.device = module, config, device

    def __call__(self, *inputs: Any) -> Any:
        """Run the model's forward pass."""
        with self.autocast():
            return self.module(*inputs)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context of the forward pass's precision."""
        return autocast(self.config, self.device)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that operations make and read inside its context.

    Args:
        known: tensors that do not count.

    Attributes:
        given: bytes of what was made before.
        now: bytes of what was made inside and lives.
        peak: the most that lived at once.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.given = self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()
        for tensor in known:
            self._is_new(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count the storages that are new.

        A network that asks whether its input is in order, and is given a shape alone, is told so.
        """
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return args[0].dtype == torch.bool or func(*args)
        self.given += sum(map(self._is_new, _tensors((args, kwargs))))
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            if size := self._is_new(tensor):
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(tensor.untyped_storage(), self._free, size)
        return made

    def _is_new(self, tensor: Tensor) -> int:
        """Return the bytes of a storage that was not met before, else 0."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return 0
        self._known[storage] = True
        return storage.nbytes()

    def _free(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True, slots=True)
class Needs:
    """What a rank needs, in 1e9 bytes."""

    held: float
    """From the first step to the last: weights, gradients, moments, averages, frozen networks."""
    activations: float
    """In a step besides, for a micro-batch."""

    @property
    def total(self) -> float:
        """Both together."""
        return self.held + self.activations


def needs(
    task: Task, config: TrainerConfig, plan: BatchPlan, device: torch.device, samples: int
) -> Needs:
    """Count what a rank needs for micro-batches of so many samples."""
    peak, frozen = peak_bytes(task, config, device, samples)
    count = sum(value.numel() for value in task.network.parameters())
    stage = config.engine.stage(plan.ranks)
    held = memory_gb(count, plan.ranks, stage, len(config.ema.decays)).values()
    return Needs(sum(held) + frozen / 1e9, peak / 1e9)


def room(device: torch.device) -> float:
    """Return what PyTorch can have of a GPU, in 1e9 bytes: what it has, and what is free."""
    return (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)) / 1e9


def advice(
    task: Task, config: TrainerConfig, plan: BatchPlan, device: torch.device, room_gb: float
) -> str:
    """Tell what a rank needs; where it does not fit, what would.

    Args:
        task: what is trained, before an engine has its weights.
        config: how.
        plan: the division of the global batch.
        device: of the networks.
        room_gb: that a rank has, in 1e9 bytes.

    Returns:
        A sentence without a full stop.
    """
    mine = needs(task, config, plan, device, plan.micro_batch_size)
    said = (
        f"a rank needs {mine.total:.3g} GB of {room_gb:.3g}, {mine.activations:.3g} of them for "
        f"activations of {plan.micro_batch_size} samples, as counted without torch.compile"
    )
    if mine.total <= SHARE * room_gb:
        return said
    ways = list(_ways(task, config, plan, device, SHARE * room_gb))
    if not ways:
        ways = ["more ranks at --zero-stage 2 or 3, or a smaller network"]
    return f"{said}, which does not fit: give {', or '.join(ways)}"


def _ways(
    task: Task, config: TrainerConfig, plan: BatchPlan, device: torch.device, limit: float
) -> Iterator[str]:
    """Yield options with which a rank would need no more than ``limit``."""
    share = plan.global_batch_size // plan.ranks
    smaller = [n for n in range(plan.micro_batch_size - 1, 0, -1) if share % n == 0]
    found = _first_that_fits(task, config, plan, device, smaller, limit)
    if found:
        yield f"--micro-batch-size {found[0]} ({found[1]:.3g} GB), which accumulates gradients"
    if not config.engine.activation_checkpointing:
        with _checkpointing(task.network):
            same = [plan.micro_batch_size, *smaller]
            found = _first_that_fits(task, config, plan, device, same, limit)
        if found:
            also = "" if found[0] == same[0] else f" --micro-batch-size {found[0]}"
            yield f"--activation-checkpointing{also} ({found[1]:.3g} GB), for a third more work"


def _first_that_fits(
    task: Task,
    config: TrainerConfig,
    plan: BatchPlan,
    device: torch.device,
    sizes: Sequence[int],
    limit: float,
) -> tuple[int, float] | None:
    """Find the first micro-batch that fits, with what a rank needs for it."""
    for samples in sizes:
        total = needs(task, config, plan, device, samples).total
        if total <= limit:
            return samples, total
    return None


@contextmanager
def _checkpointing(network: nn.Module) -> Iterator[None]:
    """Let a network compute activations again in the backward pass, inside the context."""
    switches = [
        (module, name)
        for module in network.modules()
        for name in CHECKPOINTING
        if hasattr(module, name)
    ]
    for module, name in switches:
        setattr(module, name, True)
    try:
        yield
    finally:
        for module, name in switches:
            setattr(module, name, False)


class NoNoise(Noise):
    """Zeros in place of random numbers, which fake tensors have none of."""

    def normal(self, shape: Sequence[int], purpose: Purpose) -> Tensor:
        """Return zeros, [B, *shape]."""
        return torch.zeros(len(self.positions), *shape, device=self.device)

    def times(self, distribution: TimeDistribution = "stratified") -> Tensor:
        """Return zeros, [B]."""
        return torch.zeros(len(self.positions), device=self.device)


def peak_bytes(
    task: Task, config: TrainerConfig, device: torch.device, samples: int
) -> tuple[int, int]:
    """Count what the gradient of so many samples needs besides weights and gradients.

    Returns:
        The bytes that live at once, and those of what was there before, such as frozen networks.
    """
    some = samples_of(task, 2)  # of which one may be unreadable, where --skip-budget allows it
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    given = (*task.trained.parameters(), *task.trained.buffers())
    trained = copy.deepcopy(task.trained, {id(one): fake.from_tensor(one) for one in given})
    with _as_written(config, device), fake:
        weights = [value for value in trained.parameters() if value.requires_grad]
        for value in weights:  # made before, so that they do not count
            value.grad = torch.zeros_like(value)
        known = [*trained.parameters(), *(one.grad for one in weights if one.grad is not None)]
        with LiveBytes(known) as live:
            noise = NoNoise(seed=0, step=0, positions=range(samples), total=samples, device=device)
            batch = _of_size(some, samples)
            loss = task.losses(Plain(trained, config.engine, device), batch, noise)["loss"]
            torch.autograd.backward(loss)
    return live.peak, live.given


def samples_of(task: Task, count: int) -> Any:
    """Read the first training samples, as a batch."""
    return next(iter(task.loader(Layout(ranks=1, rank=0, micro_batch=count), None)))[0]


def _of_size(some: Any, count: int) -> Any:
    """Make a batch of a size that is like a given one; its tensors are empty."""
    fields = {field.name: getattr(some, field.name) for field in dataclasses.fields(some)}
    many = {
        name: torch.empty(count, *value.shape[1:], dtype=value.dtype)
        if isinstance(value, Tensor)
        else [*value[:1]] * count
        for name, value in fields.items()
    }
    return dataclasses.replace(some, **many)


def _as_written(config: TrainerConfig, device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which blocks of frozen networks run without what was compiled."""
    if not config.engine.compiles(device.type):
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
