"""What must agree before a step is taken: a run with its checkpoint, every rank with the others."""

from collections.abc import Mapping

from infra.config import to_dict
from infra.distributed import gathered
from infra.errors import UsageError, UserError
from infra.mlflow_rules import flatten
from trainers.checkpointing import Checkpoint
from trainers.loop_config import TrainerConfig


def learnt_by(config: TrainerConfig) -> dict[str, str]:
    """Return the settings, by dotted name, that change what is learnt."""
    flat = flatten(to_dict(config))
    return {name: value for name, value in flat.items() if not config.may_change(name)}


def refuse_other_run(config: TrainerConfig, before: Checkpoint) -> None:
    """Refuse to go on with a run of another configuration.

    Raises:
        UsageError: names the settings that differ, with both values.
    """
    theirs = flatten(before.record["config"])
    fixed = {name: value for name, value in theirs.items() if not config.may_change(name)}
    changed = _changes(fixed, learnt_by(config))
    if changed:
        raise UsageError(
            f"{before.folder} is of another configuration ({changed}): give another --output, or "
            "that configuration (--config OUTPUT/config.json)"
        )


def refuse_unequal_ranks(config: TrainerConfig, data: str) -> None:
    """Refuse ranks that would train on different data, or for something else; all ranks call it.

    A machine whose copy of a set is older would otherwise read other samples at the same positions,
    and nobody would notice.

    Args:
        config: this rank's.
        data: digest of this rank's data in their order.

    Raises:
        UserError: names the rank and what differs from rank 0, on every rank alike.
    """
    first, *others = gathered({"data": data, **learnt_by(config)})
    for number, theirs in enumerate(others, start=1):
        changed = _changes(first, theirs)
        if changed:
            raise UserError(
                f"rank {number} differs from rank 0 ({changed}): bring the same sets, by manifest, "
                "and the same options to every machine"
            )


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    return "; ".join(
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )
