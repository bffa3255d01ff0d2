"""DeepSpeed, behind the few calls that a training loop needs; no other file imports it.

    device = join()                               # on every rank, or in a process of its own
    engine = Engine(model, optimizer, EngineConfig(zero_stage=2), plan)
    loss = criterion(engine(inputs), ...)         # the engine runs the model, to average later
    engine.backward(loss)                         # once per micro-batch
    grad_norm, sums = engine.step(learning_rate, values=values)      # after the last of them

Weights are float32 in every mode: bf16 is PyTorch's autocast around the forward pass, at every ZeRO
stage, with gradients reduced in float32. So no second copy of the weights is needed, averages are
of the weights that the optimiser updates, and one file of weights fits every layout. (DeepSpeed's
own `bf16` would keep the weights in bf16, and at stage 0 it takes one step too many.)
"""

import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infra.distributed import local_rank, rank
from infra.errors import UserError
from models.compilation import blocks, compile_blocks
from trainers.loop.batches import BatchPlan, deepspeed_json
from trainers.loop.config import EngineConfig
from trainers.loop.transfer import asked_for

MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's names for the averages of gradient and its square
TAG = "state"  # DeepSpeed's name for the one folder it saves here


def join(timeout_minutes: float = 30.0) -> torch.device:
    """Join the processes of this job, if a launcher started several; returns this one's device.

    Args:
        timeout_minutes: a rank that waits longer than this for the others fails, and the job with
            it, so that a job does not hang with one of its ranks.
    """
    has_cuda = torch.cuda.is_available()
    os.environ.setdefault("LOCAL_RANK", "0")
    if not has_cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with _hidden("mlflow"):  # DeepSpeed's autotuner imports it: a third of the start, for nothing
        import deepspeed
        import deepspeed.ops

    deepspeed.utils.logger.setLevel("ERROR")  # or every rank logs its start
    # DeepSpeed 0.19.8 calls what PyTorch 2.13 has renamed: every rank would say so, to no purpose.
    old = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"
    warnings.filterwarnings("ignore", old, FutureWarning)
    # DeepSpeed would compile an all-reduce through shared memory at its first start; gloo has one.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = torch.device("cuda", local_rank()) if has_cuda else torch.device("cpu")
    if has_cuda:
        torch.cuda.set_device(device)
    backend, timeout = "nccl" if has_cuda else "gloo", timedelta(minutes=timeout_minutes)
    if not torch.distributed.is_initialized() and "RANK" not in os.environ:
        # One process needs no port, which another job might use.
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]  # public, unlisted
        torch.distributed.init_process_group(
            backend, store=store, rank=0, world_size=1, timeout=timeout
        )
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
    return device


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Let imports find that a module is not installed, unless it has been imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # Python's own sign for it
    try:
        yield
    finally:
        del sys.modules[module]


def leave() -> None:
    """Leave the process group; otherwise PyTorch warns at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def leave_refused(kind: type[BaseException] | None, *_: object) -> None:
    """Leave the process group when a `UserError` ends a context; for `ExitStack.push`.

    gloo's threads sometimes abort a process that exits while they run, and its exit code is lost.
    NCCL has no such threads, and leaving it may wait for other ranks.
    """
    refused = kind is not None and issubclass(kind, UserError)
    joined = torch.distributed.is_initialized()
    if refused and joined and torch.distributed.get_backend() == "gloo":
        leave()


def autocast(config: EngineConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context of a step's precision, for whatever runs a network as the step does."""
    is_bf16 = config.precision == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16)


class Engine:
    """A model that all ranks train together.

    Args:
        model: the model, on its device and equal on all ranks; its weights are updated in place.
        optimizer: a torch Adam over its trainable parameters.
        config: precision, ZeRO stage and the like.
        plan: the division of the global batch.

    Attributes:
        module: the model itself.
        device: the device of the model.
        stage: of ZeRO.
        is_compiled: whether the blocks of the model are.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Adam, config: EngineConfig, plan: BatchPlan
    ) -> None:
        import deepspeed

        self.config = config
        self.plan = plan
        self.device = next(model.parameters()).device
        self.module = model
        self.stage = config.stage(plan.ranks)
        self.is_compiled = config.compiles(self.device.type)
        if self.is_compiled:
            self._compile()
        untimed = {"timers": {"throughput": {"enabled": False}}}  # it waits twice a step for CUDA
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config={**untimed, **deepspeed_json(config, plan)}
        )
        self._set_clipping(config.gradient_clipping)
        self._parameters = {
            name: value for name, value in model.named_parameters() if value.requires_grad
        }

    def __call__(self, *inputs: Any) -> Any:
        """Run the model's forward pass."""
        return self._engine(*inputs)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context of the forward pass's precision, for networks beside it, such as VGG."""
        return autocast(self.config, self.device)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients; after the last one they are averaged over the ranks.

        A loss that is not finite may have finite gradients. They are made NaN, so that `step` finds
        them on every rank and drops them; of a finite loss they stay as they are, times one.
        """
        is_last = self._engine.is_gradient_accumulation_boundary()
        self._engine.backward(loss * torch.where(loss.detach().isfinite(), 1.0, math.nan))
        if not is_last:
            self._engine.step()  # counts the micro-batch without an update

    def step(
        self, learning_rate: float, clipping: float | None = None, values: Tensor | None = None
    ) -> tuple[float, list[float]]:
        """Update the weights after the last micro-batch, and read the step's numbers.

        This is the one place in a step where the host waits for a GPU. It waits for the gradients
        and their norm; the update is queued by then, and keeps the GPU busy while the host goes on
        to the next step. So the host cannot decide whether to update. The fused update, which is
        CUDA's, decides on the device: where the norm is not finite it leaves weights, moments and
        the count of updates as they are. Any other update comes after a look at the norm, which on
        a CPU waits for nothing. From ZeRO 1 on DeepSpeed itself looks before it updates, so that
        there the host waits once more.

        Args:
            learning_rate: of this update.
            clipping: largest global norm of this and later updates; None leaves it as it is.
            values: of this rank, [N] on the device; equally many on all.

        Returns:
            The gradients' global norm before clipping, and the sums of the values over the ranks.
            If the norm is not finite, weights and moments are left as they were.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if clipping is not None:
            self._set_clipping(clipping)
        given = torch.zeros(0, device=self.device) if values is None else values
        numbers = given.to(torch.float64, copy=True)
        if self.plan.ranks > 1:
            torch.distributed.all_reduce(numbers)
        if self.stage:
            self._engine.step()
            read = asked_for(self._with_norm(numbers, self._engine.get_global_grad_norm()))
        else:
            gradients = [
                value.grad for value in self._parameters.values() if value.grad is not None
            ]
            norm = torch.nn.utils.get_total_norm(gradients)
            read = asked_for(self._with_norm(numbers, norm))
            self._update(norm)
        *sums, grad_norm = read()
        return grad_norm, sums

    def _with_norm(self, numbers: Tensor, norm: Tensor | float) -> Tensor:
        return torch.cat([numbers, torch.as_tensor(norm, device=self.device).double().view(1)])

    def _update(self, norm: Tensor) -> None:
        """Clip and update at stage 0, unless the norm is not finite."""
        if self._clipping:
            weights = self._parameters.values()
            torch.nn.utils.clip_grads_with_norm_(weights, self._clipping, norm)
        if self._is_fused:  # by the attribute through which torch.amp has a fused update dropped
            self._optimizer.found_inf = (~norm.isfinite()).float()
        elif not norm.isfinite():
            self._engine.zero_grad()  # a weight without a gradient is not updated
        self._engine.step()

    def _set_clipping(self, limit: float) -> None:
        """Set the largest global norm; below stage 1 it is not DeepSpeed that clips."""
        self._clipping = limit
        self._engine._config.gradient_clipping = limit if self.stage else 0.0
        if self.stage:
            self._optimizer.clip_grad = limit

    def _compile(self) -> None:
        """Compile the blocks.

        ZeRO 3 gathers the weights of each module in hooks around it, which no graph can hold. So a
        block becomes the smallest module that it gathers, and is compiled inside of its hooks.
        """
        if self.stage == 3:
            from deepspeed.utils import set_z3_leaf_module

            for block in blocks(self.module):
                set_z3_leaf_module(block, True)
        compile_blocks(self.module, inside_hooks=self.stage == 3)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Make the weights whole on every rank inside the context, which all ranks enter.

        Below ZeRO stage 3 they always are.
        """
        if self.stage < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.module.parameters())):
            yield

    def save(self, folder: Path) -> None:
        """Write the state, a part from each rank; all ranks call it."""
        self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Load what `save` wrote with the same layout, exactly; all ranks call it."""
        self._engine.load_checkpoint(str(folder), tag=TAG)
        if all(self._base.state[flat] for flat in self._flat_parameters()):
            self._link_moments()

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return Adam's state by parameter on the CPU, from which any layout can continue.

        All ranks call it, and each gets all of it. It is empty before the first step.
        """
        states = [self._base.state[flat] for flat in self._flat_parameters()]
        if not all(states):
            return {}
        state = {"step": torch.as_tensor(states[0]["step"]).detach().cpu().clone()}
        for name, parameter in self._parameters.items():
            for moment in MOMENTS:
                whole = self._moment(parameter, moment).detach()
                state[f"{moment}/{name}"] = whole.to("cpu", torch.float32, copy=True)
        return state

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `optimizer_state` of another layout; all ranks call it."""
        if not state:
            return
        for flat in self._flat_parameters():
            moments = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            where = flat.device if self._is_fused else "cpu"  # of the count, as AdamW has it
            self._base.state[flat] = {"step": state["step"].to(where, copy=True), **moments}
        self._link_moments()
        for name, parameter in self._parameters.items():
            for moment in MOMENTS:
                self._set_moment(parameter, moment, state[f"{moment}/{name}"].to(self.device))

    @property
    def _base(self) -> torch.optim.Optimizer:
        """The torch optimiser inside DeepSpeed's."""
        base: torch.optim.Optimizer = self._optimizer.optimizer if self.stage else self._optimizer
        return base

    @property
    def _is_fused(self) -> bool:
        return bool(self._base.param_groups[0]["fused"])

    def _link_moments(self) -> None:
        """Let parameters find their moments, as DeepSpeed itself does at its first step."""
        if self.stage in (1, 2):
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _flat_parameters(self) -> list[Tensor]:
        """Return what the torch optimiser updates: the parameters, or this rank's part of all."""
        match self.stage:
            case 0:
                return list(self._parameters.values())
            case 3:
                return list(self._optimizer.fp32_partitioned_groups_flat)
            case _:
                return list(self._optimizer.single_partition_of_fp32_groups)

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self.stage:
            return torch.as_tensor(self._base.state[parameter][moment])
        return torch.as_tensor(safe_get_full_optimizer_state(parameter, moment))

    def _set_moment(self, parameter: nn.Parameter, moment: str, whole: Tensor) -> None:
        from deepspeed.utils import (
            safe_get_local_optimizer_state,
            safe_set_full_optimizer_state,
            safe_set_local_optimizer_state,
        )

        if not self.stage:
            self._base.state[parameter][moment].copy_(whole)
        elif self.stage < 3:
            safe_set_full_optimizer_state(parameter, whole, moment)
        else:  # the function for whole tensors fails where the ranks' parts are padded
            part = torch.zeros_like(safe_get_local_optimizer_state(parameter, moment))
            mine = whole.flatten()[part.numel() * rank() :][: part.numel()]
            part[: mine.numel()] = mine
            safe_set_local_optimizer_state(parameter, part, moment)
