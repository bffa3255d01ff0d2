"""Where a run begins: at step 0, with given weights, from its own checkpoint, or as a fork.

Every checkpoint of a run has it under `origin`, so that it is known to the last:

    parent    run, step and folder that a fork began from; None of any other run
    init      of --init-from: what was given, and the SHA-256 of the weights; None without it
"""

from typing import Any

from infra.errors import UsageError
from infra.tracking.rules import flatten
from trainers.loop.agreement import refuse_unequal_ranks
from trainers.loop.checkpoints import Checkpoint
from trainers.loop.config import TrainerConfig
from trainers.loop.initial import begin_with
from trainers.loop.task import Task

Origin = dict[str, dict[str, Any] | None]


def begun(task: Task, config: TrainerConfig, before: Checkpoint | None, *, is_own: bool) -> Origin:
    """Find out where a run begins, and load the weights of --init-from if it is at step 0.

    Args:
        task: its network gets the weights.
        config: of the run.
        before: the checkpoint that the run goes on from.
        is_own: whether that lies in the run's own folder.

    Raises:
        UserError: weights that cannot be had, that are not those that the run began with, or that
            are others on another rank.
    """
    where = config.loop.init_from
    if before is None:
        init = {"from": where, "sha256": begin_with(task, where)} if where else None
        refuse_unequal_ranks({"--init-from": init and init["sha256"]})
        return {"parent": None, "init": init}
    origin: Origin = before.record["origin"]
    init = origin["init"]
    if where and where != (init or {}).get("from"):
        _refuse_other_weights(task, where, init, before)
    if is_own:
        return origin
    folder = str(before.where.resolve())
    parent = {"run": before.record["token"], "step": before.step, "folder": folder}
    return {"parent": parent, "init": init}


def tags(origin: Origin) -> dict[str, str]:
    """Return what MLflow shows of it."""
    return flatten({name: fact for name, fact in origin.items() if fact})


def _refuse_other_weights(
    task: Task, where: str, init: dict[str, Any] | None, before: Checkpoint
) -> None:
    """Take another path to the same weights; the checkpoint's own are loaded afterwards."""
    if init is None or begin_with(task, where) != init["sha256"]:
        began = "with weights of its seed" if init is None else f"from {init['from']}"
        raise UsageError(
            f"--init-from {where}: the run of {before.where} began {began}; leave the option out "
            "to go on with it, or give another --output to begin from those weights"
        )
