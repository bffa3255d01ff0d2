"""Which process of a distributed job this is, as its launcher says.

``torchrun`` and ``deepspeed`` both set these variables; a process that nobody launched is alone.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from infra.errors import UsageError, UserError
from infra.storage import explained

T = TypeVar("T")


def rank() -> int:
    """Return this process's number among all processes of the job, from 0.

    Raises:
        UsageError: RANK and WORLD_SIZE contradict each other or are not numbers.
    """
    number, total = _number("RANK", 0), world_size()
    if not 0 <= number < total:
        raise UsageError(
            f"RANK={number} does not fit WORLD_SIZE={total}; start the job with torchrun or "
            "deepspeed, which set both, or unset both"
        )
    return number


def world_size() -> int:
    """Return how many processes the job has, at least 1.

    Raises:
        UsageError: WORLD_SIZE is not a positive number.
    """
    total = _number("WORLD_SIZE", 1)
    if total < 1:
        raise UsageError(
            f"WORLD_SIZE={total}: a job has at least 1 process; unset it or correct it"
        )
    return total


def local_rank() -> int:
    """Return this process's number on its machine, from 0: which GPU is its own.

    Raises:
        UsageError: LOCAL_RANK is not a number.
    """
    return _number("LOCAL_RANK", 0)


def sums(values: Sequence[float], device: str = "cpu") -> list[float]:
    """Add numbers over all processes, in float64; each process gives equally many.

    The processes must have joined (``torch.distributed``), unless there is only one.
    """
    import torch

    if world_size() == 1:
        return [float(value) for value in values]
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


def gathered(value: T) -> list[T]:
    """Return what every process gave, by rank; for rare and small things."""
    import torch

    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return [item for item in values if item is not None]


def together(action: Callable[[], T]) -> list[T]:
    """Do something in every process; returns what each found, by rank.

    Raises:
        UserError: one of them was refused something, by a system error too; raised in all, so that
            none waits for one that has ended.
    """
    found: list[T] = []
    refusal: UserError | None = None
    try:
        found.append(action())
    except UserError as error:
        refusal = error
    except OSError as error:
        refusal = explained(error, error.filename or "input or output")
    answers = gathered((found, refusal))
    for _, refused in answers:
        if refused is not None:
            # A process that exits now would break the connection of one that still gathers.
            with contextlib.suppress(RuntimeError):
                barrier()
            raise refused
    return [value for values, _ in answers for value in values]


def by_first(action: Callable[[], T]) -> T:
    """Return in every process what the first one finds; its refusal is raised in all.

    Raises:
        UserError: the first one was refused something.
    """
    found = together(lambda: [action()] if rank() == 0 else [])
    return found[0][0]


def barrier() -> None:
    """Wait until every process is here."""
    import torch

    if world_size() > 1:
        torch.distributed.barrier()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError as error:
        raise UsageError(
            f"{name}={text!r} is not a whole number; unset it or correct it"
        ) from error
