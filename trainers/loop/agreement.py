"""Checks before the first step: a run agrees with its checkpoint, and all ranks agree."""

import contextlib
from collections.abc import Mapping
from typing import Any

from infra.config import differences, flat, to_dict
from infra.distributed import barrier, gathered
from infra.errors import UsageError, UserError
from trainers.loop.checkpoints import Checkpoint
from trainers.loop.config import TrainerConfig
from trainers.loop.task import Task

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


def refuse_replaced_networks(networks: Mapping[str, str], before: Checkpoint) -> None:
    """Refuse to go on with a run whose loss depended on other frozen networks.

    Their paths may change, so a network that was trained again in place would otherwise take the
    place of the one before without an error. What only one side names was not there, or not known.

    Args:
        networks: of `Task.networks`.
        before: the checkpoint that the run goes on from.

    Raises:
        UsageError: names the networks that differ, with both digests and what may be done.
    """
    theirs = before.networks
    both = networks.keys() & theirs.keys()
    changed = differences(*({name: of[name] for name in both} for of in (networks, theirs)))
    if changed:
        options = " ".join(f"--{name}" for name in sorted(both) if networks[name] != theirs[name])
        raise UsageError(
            f"{before.where} was trained with other networks ({'; '.join(changed)}, by SHA-256 of "
            f"the weights): give {options} as it was then, from whatever path (of cached latents: "
            "those that it made); or train with these in another --output, which begins anew with "
            f"--init-from {before.where}; nothing was changed"
        )


def in_common(task: Task, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all ranks of a run have in common, by dotted name.

    Args:
        task: of this rank.
        facts: of `Task.facts`.
    """
    return flat(
        {
            "data": [sha256 for _, sha256, *_ in task.data()],
            "networks": task.networks(),
            "validation": facts.get("validation", {}),
            **_fixed(task.config, to_dict(task.config)),
        }
    )


def refuse_unequal_ranks(mine: Mapping[str, Any]) -> None:
    """Refuse ranks that differ in what they should have in common; all ranks call it.

    A machine with an older copy of a set would otherwise read other samples at the same positions
    without an error, and one with an older copy of a network compute another loss.

    Args:
        mine: values of this rank, by name.

    Raises:
        UserError: raised on every rank; names the rank that differs from rank 0, and in what.
    """
    first, *others = gathered(dict(mine))
    for number, theirs in enumerate(others, start=1):
        changed = differences(theirs, first)
        if changed:
            # A rank that exits now would break the connection of one that still gathers.
            with contextlib.suppress(RuntimeError):
                barrier()
            raise UserError(
                f"rank {number} differs from rank 0 ({'; '.join(changed)}): bring the same sets, "
                "by manifest, the same weights and the same options to every machine"
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
