"""Checks before the first step: a run agrees with its checkpoint, and all ranks agree."""

import contextlib
from typing import Any

from infra.config import differences, flat, to_dict
from infra.distributed import barrier, gathered
from infra.errors import UsageError, UserError
from trainers.loop.checkpoints import Checkpoint
from trainers.loop.config import TrainerConfig


def refuse_other_run(config: TrainerConfig, before: Checkpoint) -> None:
    """Refuse to go on with a run of another configuration.

    Raises:
        UsageError: names the settings that differ, with both values.
    """
    theirs = _fixed(config, before.record["config"])
    changed = differences(_fixed(config, to_dict(config)), theirs)
    if changed:
        raise UsageError(
            f"{before.folder} is of another configuration ({'; '.join(changed)}): give another "
            "--output, or that configuration (--config OUTPUT/config.json)"
        )


def refuse_unequal_ranks(config: TrainerConfig, data: str) -> None:
    """Refuse ranks whose data or options differ; all ranks call it.

    A machine with an older copy of a set would otherwise read other samples at the same positions
    without an error.

    Args:
        config: configuration of this rank.
        data: digest of this rank's data and their order.

    Raises:
        UserError: raised on every rank; names the rank that differs from rank 0, and in what.
    """
    first, *others = gathered({"data": data, **_fixed(config, to_dict(config))})
    for number, theirs in enumerate(others, start=1):
        changed = differences(theirs, first)
        if changed:
            # A rank that exits now would break the connection of one that still gathers.
            with contextlib.suppress(RuntimeError):
                barrier()
            raise UserError(
                f"rank {number} differs from rank 0 ({'; '.join(changed)}): bring the same sets, "
                "by manifest, and the same options to every machine"
            )


def _fixed(config: TrainerConfig, values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings, by dotted name, that change what is learnt."""
    return {name: value for name, value in flat(values).items() if not config.may_change(name)}
