"""Which process of a distributed job this is, as its launcher says.

``torchrun`` and ``deepspeed`` both set these variables; a process that nobody launched is alone.
"""

import os

from infra.errors import UsageError


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


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError as error:
        raise UsageError(
            f"{name}={text!r} is not a whole number; unset it or correct it"
        ) from error
