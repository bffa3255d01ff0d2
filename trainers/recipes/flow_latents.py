"""What a flow takes over from the latents that it is trained on, and when it refuses them.

A latent set's manifest says what made it, under `identity`. A flow that is validated on pictures
makes latents too: of the same networks, by the same degradation, as the same mode or sample. What
is not given is as the latents were made; what is given and contradicts them is refused.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from datasets.degradation.parameters import PRESETS as DEGRADATIONS
from datasets.degradation.parameters import DegradationConfig, degradation_preset
from datasets.reading.latents import check_belongs
from infra.config import differences, from_dict
from infra.errors import UserError
from models.restorer import RestorationRule
from trainers.recipes.flow_config import FlowConfig
from trainers.recipes.flow_networks import belonging

SOURCES_TAKEN = {"lq": ("lq",), "regressed": ("posterior_mean", "regressed")}
ONLINE = {"posterior": "sample", "degradation": "pmrf"}  # the authors', where no latents say more
Identity = Mapping[str, Any]
"""The entry of a latent set's manifest; empty where there is no set."""


def refuse_other_networks(config: FlowConfig, digests: dict[str, str], identity: Identity) -> None:
    """Refuse latents with other sources than the run's, or by other networks.

        source of the run    sources of the set that it takes
        posterior_mean       posterior_mean
        noise                posterior_mean: of which only a condition is left
        lq                   lq
        regressed            posterior_mean: --regressor is applied to them as they are loaded;
                             regressed: as they are, unless conditional, since the condition is
                             the encoded posterior mean; a --regressor, which pictures need in
                             validation, must be the one that made them

    Args:
        config: of the run.
        digests: of its networks, by the name of the option.
        identity: of the latents.

    Raises:
        UserError: names what differs, with both values.
    """
    made = identity.get("source")
    taken = SOURCES_TAKEN.get(config.source, ("posterior_mean",))
    mine = belonging(config, digests)
    if made == "regressed" and "regressor" in digests:
        mine["regressor"] = digests["regressor"]
    check_belongs({"identity": identity}, source=made if made in taken else taken[0], **mine)
    if made == "regressed" and config.conditional:
        raise UserError(
            "--latents: their sources are regressed, and a conditional flow is shown what a "
            "regressor regresses, E(posterior mean): give the latents of --source "
            "posterior_mean and --regressor"
        )
    if config.source == "regressed" and made != "regressed" and "regressor" not in digests:
        raise UserError(
            "--latents: their sources are posterior means; give --regressor, which makes "
            "regressed ones of them, or latents of pipelines.encode --source regressed"
        )


def resolved(config: FlowConfig, identity: Identity) -> FlowConfig:
    """Fill in the posterior and the degradation: what made the latents, or online the authors'.

    A degradation that no preset here has stays None, and means what it means.

    Raises:
        UserError: a value that is given contradicts the latents, or pictures are to be restored
            and neither says how.
    """
    taken: dict[str, Any] = {
        name: getattr(config, name) or default
        if config.draws == "online"
        else _taken_over(config, name, identity)
        for name, default in ONLINE.items()
    }
    return replace(config, **taken)


def _taken_over(config: FlowConfig, name: str, identity: Identity) -> str | None:
    """Return what made the latents; see `resolved`."""
    given: str | None = getattr(config, name)
    if name not in identity:
        if given is None and config.restores:
            raise UserError(
                f"--latents {config.latents}: their manifest names no {name}, by which validation "
                f"on --images has to go; encode again, or give --{name}"
            )
        return given
    made: str | None = _preset(identity[name]) if name == "degradation" else identity[name]
    if given is not None and given != made:
        value = made or f"one that is no preset here ({_changes(given, identity[name])})"
        raise UserError(
            f"--{name} {given}: the latents in {config.latents} were made with {value}; "
            f"give --{name} {made}, which is also what it is if not given, or encode again with "
            f"--{name} {given}"
        )
    return made


def degradation(config: FlowConfig, identity: Identity) -> DegradationConfig:
    """Return what degrades images here; ``config`` as `resolved` returned it."""
    if config.degradation is not None:
        return degradation_preset(config.degradation)
    return from_dict(DegradationConfig, identity["degradation"])


def restoration_rule(config: FlowConfig, identity: Identity) -> RestorationRule:
    """Return which way an image takes in this run; ``config`` as `resolved` returned it.

    A run on cached latents without pictures encodes nothing, so that its posterior may be unknown.
    """
    return RestorationRule(
        space=config.space,
        source=config.source,
        posterior=config.posterior or "mode",
        sigma_s=config.sigma_s,
        conditional=config.conditional,
        precision=identity.get("precision", "float32"),
        predictor_precision=identity.get("predictor_precision", "float32"),
    )


def _preset(made: Mapping[str, Any]) -> str | None:
    """Name the preset that has these parameters, if one has."""
    config = from_dict(DegradationConfig, made)
    return next((name for name, preset in DEGRADATIONS.items() if preset == config), None)


def _changes(given: str, made: Mapping[str, Any]) -> str:
    mine, theirs = degradation_preset(given), from_dict(DegradationConfig, made)
    return "; ".join(differences(asdict(mine), asdict(theirs)))
