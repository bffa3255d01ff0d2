"""What others restore with: the facts in every checkpoint, and the bundle at a run's end."""

import functools
import platform
from pathlib import Path

import torch
from torch import nn

from infra.errors import UserError
from infra.paths import path_of
from infra.tracking.provenance import git_commit
from models.bundle import in_memory, write_bundle
from models.bundle_facts import FlowFacts, PartName, needed
from models.checkpoint import CheckpointError
from models.restorer import Restorer
from trainers.loop.task import Finished
from trainers.loop.terminal import say
from trainers.recipes.flow_config import FlowConfig

BUNDLE = "bundle"
AROUND: tuple[PartName, ...] = ("vae", "predictor", "regressor")


def export_bundle(
    folder: Path, home: str, network: nn.Module, restorer: Restorer, facts: FlowFacts, run: Finished
) -> str:
    """Write the bundle of a finished run, if all its networks are there.

    Args:
        folder: the run's, on this machine.
        home: its --output.
        network: the velocity, of averaged weights.
        restorer: the networks around it.
        facts: of the flow.
        run: what its training has come to.

    Returns:
        Where others find the bundle, or how they get it; a sentence for people.

    Raises:
        UserError: it could not be written.
    """
    there = path_of(home) / BUNDLE
    here = {"vae": restorer.vae, "predictor": restorer.predictor, "regressor": restorer.regressor}
    lacking = [name for name in needed(facts.rule) if name in here and here[name] is None]
    if lacking:
        options = " ".join(f"--{name} {name.upper()}" for name in lacking)
        said = (
            f"no bundle yet, since the run was given no {' and no '.join(lacking)}: `python -m "
            f"pipelines.restore export {path_of(home)} {there} {options}` writes it"
        )
        say(f"{said}\n")
        return said
    factor = 1 if restorer.vae is None else restorer.vae.downsample_factor
    config = facts.bundle(factor, step=run.step, metrics=run.metrics, origin=run.origin)
    try:
        write_bundle(folder / BUNDLE, in_memory(config, network, restorer))
    except (CheckpointError, OSError) as error:
        raise UserError(
            f"the bundle could not be written ({error}); free some space, and run the same command "
            "again, which only writes what is missing"
        ) from error
    said = f"`python -m pipelines.restore --model {there}` restores with it"
    say(f"{said}\n")
    return said


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the programs at work."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    commit = git_commit()
    if commit:
        found["commit"] = commit[0] + (", with changes" if commit[1] else "")
    return found


def given_networks(config: FlowConfig) -> dict[PartName, str]:
    """Name the places of the networks that a configuration names, as found from anywhere."""
    names = AROUND if config.space == "latent" else AROUND[1:]
    return {name: _absolute(getattr(config, name)) for name in names if getattr(config, name)}


def _absolute(where: str) -> str:
    """Name a local file or folder so that it is found from anywhere; what else is given stays."""
    if (whole := Path(where).expanduser()).exists():  # "=" may be a part of a path
        return str(whole.resolve())
    name, equals, rest = where.partition("=")
    if equals and rest and (named := Path(rest).expanduser()).exists():
        return f"{name}={named.resolve()}"
    return where
