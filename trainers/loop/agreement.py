"""Checks before the first step: a run agrees with its checkpoint, and all ranks agree."""

import contextlib
from typing import Any

from infra.config import differences, flat, to_dict
from infra.distributed import barrier, gathered
from infra.errors import UsageError, UserError
from trainers.loop.checkpoints import Checkpoint
from trainers.loop.config import TrainerConfig

HINTS = {  # what may be done instead, by the field that may not be changed
    "schedule.peak": "; --peak-from {step} {value} changes the peak from here on",
    "engine.gradient_clipping": "; --clipping-from {step} {value} changes the clipping from here "
    "on",
    "changes.peak_from": "; repeat the --peak-from of steps before {step}, and add later ones",
    "changes.clipping_from": "; repeat the --clipping-from of steps before {step}, and add later "
    "ones",
    "changes.skip_steps": "; repeat the --skip-steps before {step}, and add later ones",
}


def refuse_other_run(config: TrainerConfig, before: Checkpoint) -> None:
    """Refuse to go on with a run of another configuration, or with one that is past its end.

    Raises:
        UsageError: names the settings that differ, with both values and what may be done; or the
            last step and the step of the checkpoint.
    """
    saved = before.record["config"]
    mine, theirs = (
        _fixed(config, values) | _past(values, before.step) for values in (to_dict(config), saved)
    )
    changed = differences(mine, theirs)
    if changed:
        saved_file = before.where.parent.parent / "config.json"
        hints = [
            hint.format(step=before.step, value=mine[name])
            for name, hint in HINTS.items()
            if mine.get(name) != theirs.get(name)
        ]
        raise UsageError(
            f"{before.where} is of another configuration ({'; '.join(changed)}): give that "
            f"configuration (--config {saved_file}), or another --output, where a run begins "
            f"without --resume{''.join(hints)}"
        )
    if config.loop.max_steps < before.step:
        raise UsageError(
            f"--max-steps {config.loop.max_steps}, but {before.where} has {before.step} steps "
            f"already: give --max-steps {before.step} or more, or another --output; nothing was "
            "changed"
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


def _past(values: dict[str, Any], step: int) -> dict[str, Any]:
    """Return what was changed before a step, by dotted name; what comes later is free."""
    changes = values["changes"]
    began = {
        name: [one for one in changes[name] if one[0] < step]
        for name in ("peak_from", "clipping_from")
    }
    skipped = [one for one in changes["skip_steps"] if one < step]
    return {f"changes.{name}": past for name, past in {**began, "skip_steps": skipped}.items()}
