"""Exponential moving averages of a model's parameters, in float32, beside the model.

After update k, average <- average + (1 - d_k) (parameter - average), with d_k = `decay_at`. Several
decays are followed at once. Parameters of every kind are averaged, frozen ones too; buffers are
not: they are the model's own wherever an average is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.checkpoint import CheckpointError, read_file, read_state_dict
from models.configuration import STRICT

Warmup = Literal["diffusers", "torch_ema", "none"]
Decay = Annotated[float, Field(ge=0, lt=1)]
UPDATES = "updates"


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class EMAConfig:
    """Which averages are kept."""

    decays: Annotated[tuple[Decay, ...], Field(min_length=1)] = (0.9999,)
    """Decay d of each average; the first is the one used where none is named."""
    warmup: Warmup = "diffusers"
    """How d_k grows to d: ``diffusers`` as for the authors' Sim-VAE, ``torch_ema`` as for PMRF, or
    ``none``."""

    def __post_init__(self) -> None:
        """Refuse two averages of one name."""
        if len(set(self.decays)) < len(self.decays):
            raise ValueError(f"decays={self.decays}: each once")


def decay_at(update: int, decay: float, warmup: Warmup) -> float:
    """Return d_k of update k, counted from 1.

    ``diffusers`` forgets the initial weights at the first update, then min(k / (9 + k), d);
    ``torch_ema`` has min((1 + k) / (10 + k), d) throughout.
    """
    match warmup:
        case "diffusers":
            return min(update / (9 + update), decay) if update > 1 else 0.0
        case "torch_ema":
            return min((1 + update) / (10 + update), decay)
        case "none":
            return decay


class EMA:
    """Averages of the parameters of one model.

    Args:
        model: the model itself, not a wrapper around it: names must stay the same. The averages
            start as copies of its parameters, on their devices.
        config: which averages.
    """

    def __init__(self, model: nn.Module, config: EMAConfig) -> None:
        self.config = config
        self.updates = 0
        self._applied = False
        self._averages = {
            decay: {name: _float_copy(value) for name, value in _parameters(model).items()}
            for decay in config.decays
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move every average towards the model's parameters; call it after each optimiser step.

        Raises:
            RuntimeError: an average is swapped in, so it would be averaged with itself.
        """
        if self._applied:
            raise RuntimeError("update inside `applied`: leave the context before training goes on")
        self.updates += 1
        parameters = self._matching(model)
        for decay, averages in self._averages.items():
            weight = 1 - decay_at(self.updates, decay, self.config.warmup)
            values = [parameters[name].to(average) for name, average in averages.items()]
            torch._foreach_lerp_(list(averages.values()), values, weight)  # few kernels on CUDA

    @contextmanager
    def applied(self, model: nn.Module, decay: float | None = None) -> Iterator[None]:
        """Give the model the averaged weights inside a `with`, and its own back, bit for bit.

        Its own come back after an exception too. Meanwhile both sets are in memory.

        Args:
            model: the model.
            decay: which average, by default the first.
        """
        averages = self._averages[self._which(decay)]
        parameters = self._matching(model)
        own = {name: value.detach().clone() for name, value in parameters.items()}
        was_applied, self._applied = self._applied, True
        try:
            _copy(averages, parameters)
            yield
        finally:
            _copy(own, parameters)
            self._applied = was_applied

    def averaged_state_dict(
        self, model: nn.Module, decay: float | None = None
    ) -> dict[str, Tensor]:
        """Return what a model of averaged weights would: float32 averages, the model's buffers.

        The averages are not copied: save them, or load them into a model, before the next update.
        """
        averages = self._averages[self._which(decay)]
        return {name: averages.get(name, value) for name, value in model.state_dict().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything as tensors, which safetensors can hold, for `load_state_dict`."""
        state = {UPDATES: torch.tensor(self.updates)}
        for decay, averages in self._averages.items():
            state |= {f"{decay}/{name}": average for name, average in averages.items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state_dict`, copied into the averages where they are.

        Raises:
            CheckpointError: it has other decays, or is of another model.
        """
        mine = self.state_dict()
        wrong = sorted(mine.keys() ^ state.keys())
        wrong += [name for name in mine if name in state and mine[name].shape != state[name].shape]
        if wrong:
            raise CheckpointError(
                f"EMA state of other decays than {self.config.decays} or of another model; "
                f"{len(wrong)} tensors differ in name or shape, first {wrong[0]}: resume with the "
                "configuration that was saved"
            )
        for name, value in mine.items():
            value.copy_(state[name])
        self.updates = int(state[UPDATES])

    def _which(self, decay: float | None) -> float:
        """Look up a decay.

        Raises:
            ValueError: it is not followed.
        """
        chosen = self.config.decays[0] if decay is None else decay
        if chosen not in self._averages:
            raise ValueError(f"decay={decay}: only {self.config.decays} are followed")
        return chosen

    def _matching(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the model's parameters by name.

        Raises:
            ValueError: they are not those that are averaged.
        """
        parameters = _parameters(model)
        wrong = sorted(parameters.keys() ^ self._averages[self.config.decays[0]].keys())
        if wrong:
            raise ValueError(
                f"{len(wrong)} parameters are not those that are averaged, first {wrong[0]}: give "
                "the model that the EMA was made for, without a wrapper"
            )
        return parameters


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters by name; a shared one under each of its names, as in a state dict."""
    return dict(model.named_parameters(remove_duplicate=False))


def _float_copy(value: Tensor) -> Tensor:
    return value.detach().to(torch.float32, copy=True)


@torch.no_grad()
def _copy(values: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
    """Overwrite parameters in place, so that optimisers and compiled graphs keep their tensors."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def read_torch_ema(
    path: str | Path, model: nn.Module, *, key: str = "ema", prefix: str = ""
) -> dict[str, Tensor]:
    """Read averages that torch_ema saved without names, as PMRF's Lightning checkpoint has them.

    Args:
        path: a checkpoint with `state_dict`, and torch_ema's state with `shadow_params`.
        model: whose parameters, in their order, were averaged; only names and shapes are read.
        key: where torch_ema's state lies.
        prefix: of the model's tensors in `state_dict`, which gives the buffers.

    Returns:
        A state dict for `load_strict`.

    Raises:
        CheckpointError: no such state, or of other parameters than the model's.
    """
    shadow = read_file(path).get(key)
    averages = shadow.get("shadow_params") if isinstance(shadow, dict) else None
    if not isinstance(averages, list):
        raise CheckpointError(f"{path}: no `shadow_params` under {key!r}, as torch_ema saves them")
    parameters = dict(model.named_parameters())
    expected = [list(value.shape) for value in parameters.values()]
    found = [list(value.shape) for value in averages]
    if expected != found:
        raise CheckpointError(
            f"{path}: {len(found)} averages, of other shapes than the {len(expected)} parameters "
            f"of {type(model).__name__}: build the model with the configuration they are of"
        )
    raw = read_state_dict(path, key="state_dict", prefix=prefix)
    return raw | dict(zip(parameters, averages, strict=True))
