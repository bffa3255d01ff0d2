"""A training run's folder, read as a model: averaged weights and the networks around them.

Only files are read that every checkpoint has whatever trained it: `manifest.json`, `record.json`,
`metrics.json` and the averages. A run may be going on meanwhile.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from infra import paths
from infra.copies import at_hand
from infra.errors import UsageError
from infra.paths import AnyPath, read_if_there
from models.bundle import Bundle, in_memory
from models.bundle_facts import Alignment, Dtype, FlowFacts, PartName, needed
from models.checkpoint import CheckpointError
from models.configuration import config_from_dict
from models.frozen import (
    load_hdit,
    load_looformer,
    load_posterior_mean,
    load_regressor,
    load_vae,
)
from models.restorer import Restorer

CHECKPOINTS, BUNDLE = "checkpoints", "bundle"
RECORD = "record.json"
AROUND: dict[PartName, Any] = {
    "vae": load_vae,
    "predictor": load_posterior_mean,
    "regressor": load_regressor,
}


@dataclass(frozen=True, slots=True)
class RunCheckpoint:
    """A checkpoint of a flow, as far as restoring needs it."""

    folder: AnyPath
    record: dict[str, Any]
    facts: FlowFacts
    metrics: dict[str, float]
    """Of the validation of its step; empty if there was none."""

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.record["step"])

    @property
    def said(self) -> str:
        """Where in the training it is, for people."""
        return f"step {self.step:,} of {self.facts.training.max_steps:,}"


def names(run: AnyPath) -> list[str]:
    """List the complete checkpoints of a run, oldest first."""
    found = paths.glob(run / CHECKPOINTS, "step-*/manifest.json")
    return sorted(path.parent.name for path in found)


def step_of(name: str) -> int:
    """Return the step of the checkpoint of this name."""
    return int(name.rpartition("-")[2])


def chosen(run: AnyPath, which: str = "last") -> RunCheckpoint:
    """Read a checkpoint of a run.

    Args:
        run: the folder.
        which: "last", "best" by the run's own metric, or a step.

    Raises:
        UsageError: no such checkpoint, with those that there are; or no flow's.
    """
    known = names(run)
    if not known:
        raise UsageError(f"{run}: has no complete checkpoint in {CHECKPOINTS}/; let it train on")
    if which == "last":
        return read(run / CHECKPOINTS / known[-1])
    if which == "best":
        return _best([read(run / CHECKPOINTS / name) for name in known])
    steps = {str(step_of(name)): name for name in known}
    if which not in steps:
        raise UsageError(
            f"--checkpoint {which}: {run} has the steps {', '.join(steps)}; give one of these, "
            "last, or best"
        )
    return read(run / CHECKPOINTS / steps[which])


def _best(found: list[RunCheckpoint]) -> RunCheckpoint:
    metric = found[-1].facts.best
    name, sign = metric.removeprefix("-"), -1 if metric.startswith("-") else 1
    rated = [one for one in found if name in one.metrics]
    if not rated:
        raise UsageError(
            f"--checkpoint best: no checkpoint of {found[-1].folder.parent.parent} was validated "
            f"by {name}; give --checkpoint last, or a step: "
            f"{', '.join(str(one.step) for one in found)}"
        )
    return max(rated, key=lambda one: sign * one.metrics[name])


def read(folder: AnyPath) -> RunCheckpoint:
    """Read what a checkpoint says of itself.

    Raises:
        UsageError: it is damaged, of an older program, or of something else than a flow.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        text = (folder / RECORD).read_bytes()
        if hashlib.sha256(text).hexdigest() != manifest["files"][RECORD]["sha256"]:
            raise ValueError(f"{RECORD} has other bytes than were written")
        record = json.loads(text)
        metrics = json.loads(read_if_there(folder / "metrics.json") or b'{"metrics": {}}')
        numbers = {str(name): float(value) for name, value in metrics["metrics"].items()}
        told = record.get("restoring", "")
        facts = config_from_dict(FlowFacts, told) if told else told
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{folder}: damaged ({error}); choose another by --checkpoint STEP, or copy it again"
        ) from error
    if facts is None:
        raise UsageError(f"{folder}: of no flow, and only a flow restores; give a flow's run")
    if not isinstance(facts, FlowFacts):
        raise UsageError(
            f"{folder}: written before checkpoints told how to restore with them; give the run's "
            "training command again, which at its end only writes what is missing"
        )
    return RunCheckpoint(folder, record, facts, numbers)


def loaded(
    found: RunCheckpoint,
    given: Mapping[PartName, str] | None = None,
    *,
    alignment: Alignment | None = None,
    dtype: Dtype = "float32",
) -> Bundle:
    """Load a checkpoint's averaged weights and the networks around them.

    Args:
        found: the checkpoint.
        given: where networks are to be taken from, in the place of where the run had them from.
        alignment: in the place of what the run says.
        dtype: in which the weights are to be stored.

    Raises:
        UsageError: a network is not to be had, or is another one than the run's.
    """
    known = {**found.facts.networks, **(given or {})}
    wanted = [name for name in AROUND if name in needed(found.facts.rule)]
    parts = {name: _around(name, known.get(name, ""), found) for name in wanted}
    used = {name: known[name] for name in wanted}
    facts = replace(found.facts, networks=used, alignment=alignment or found.facts.alignment)
    restorer = Restorer(facts.rule, **parts)
    load = load_looformer if facts.rule.space == "latent" else load_hdit
    decay = found.record["config"]["ema"]["decays"][0]
    try:
        velocity = load(at_hand(str(found.folder / f"ema-{decay}")))
    except CheckpointError as error:
        raise UsageError(f"{error}; or choose another by --checkpoint STEP") from error
    factor = 1 if restorer.vae is None else restorer.vae.downsample_factor
    origin = found.record["origin"]
    config = facts.bundle(factor, step=found.step, metrics=found.metrics, origin=origin)
    return in_memory(config, velocity, restorer, dtype)


def _around(name: PartName, where: str, found: RunCheckpoint) -> Any:
    """Load a network that is the one that the run's pairs are from."""
    run = found.folder.parent.parent
    remedy = f"`python -m pipelines.restore export {run} BUNDLE --{name} {name.upper()}`"
    if not where:
        raise UsageError(f"{run}: it was trained without a {name} at hand; name it by {remedy}")
    try:
        network, who = AROUND[name](at_hand(where))
    except (CheckpointError, OSError) as error:
        raise UsageError(
            f"{run}: its {name} is not to be had from {where} ({error}); if it lies elsewhere now, "
            f"name it by {remedy}"
        ) from error
    expected = found.facts.weights.get(name, who.weights)
    if who.weights != expected:
        raise UsageError(
            f"{run}: it was trained with the {name} {expected[:12]}, and {where} is "
            f"{who.weights[:12]}; name that one by {remedy}"
        )
    return network
