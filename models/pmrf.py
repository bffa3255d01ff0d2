"""PMRF as its authors publish it: `ohayonguy/PMRF_blind_face_image_restoration`, as a bundle.

Two layouts are read. The hub's folder has a config.json of the constructor's arguments and a
model.safetensors; training leaves a Lightning checkpoint with the arguments in it, the raw weights
and their averages. Both have the velocity network under ``model.`` and the posterior-mean predictor
under ``mmse_model.``, beside metrics that are not read. Networks go by names, `VELOCITIES` and
`PREDICTORS`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.bundle import Bundle, in_memory
from models.bundle_facts import BundleConfig, TrainingFacts
from models.checkpoint import (
    CONFIG,
    WEIGHTS,
    CheckpointError,
    CheckpointNotFoundError,
    load_strict,
    read_file,
    read_state_dict,
)
from models.predictor.swinir import LICENCE as PREDICTOR_LICENCE
from models.predictor.swinir import PRESETS as SWINIRS
from models.predictor.swinir import SwinIR, SwinIRConfig
from models.restorer import RestorationRule, Restorer
from models.velocity.hdit import PRESETS as HDITS
from models.velocity.hdit import HDiT, HDiTConfig, load_pmrf

REPOSITORY = "ohayonguy/PMRF_blind_face_image_restoration"
VELOCITIES: dict[str, HDiTConfig] = {
    "hdit_ImageNet256Sp4": HDITS["pmrf-512"],
    "hdit_XL2": HDITS["pmrf-256"],
}
PREDICTORS: dict[str, SwinIRConfig] = {
    "swinir_L": SWINIRS["swinir_L"],
    "swinir_M": SWINIRS["swinir_M"],
}
SIGMA_S = 0.1  # the constructor's own, where the configuration is silent
LICENCES = {"velocity": "MIT", "predictor": f"MIT; DifFace's weights are {PREDICTOR_LICENCE}"}
WHERE = (
    f"get {CONFIG} and {WEIGHTS} of https://huggingface.co/{REPOSITORY} into a folder and give "
    "its path, or blind_face_restoration_pmrf.ckpt, which https://github.com/ohayonguy/PMRF links"
)


def is_published(path: Path) -> bool:
    """Tell whether a file or folder looks like PMRF's; says nothing of whether it is whole."""
    if path.is_file():
        return path.suffix == ".ckpt"
    try:
        return "mmse_model_arch" in json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def load_published(path: Path) -> Bundle:
    """Load PMRF's networks in float32 on the CPU, frozen.

    Args:
        path: the hub's folder, or a Lightning checkpoint, of which the averages are taken.

    Raises:
        CheckpointError: a file is missing, damaged or of another network; says where to get it.
    """
    arguments, weights = _arguments(path)
    rule = RestorationRule(
        space="pixel", sigma_s=float(arguments.get("mmse_noise_std", SIGMA_S)), posterior="mode"
    )
    try:
        velocity = _velocity(arguments, weights)
        predictor = _predictor(arguments, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {WHERE}") from error
    facts = TrainingFacts(
        networks={"velocity": REPOSITORY, "predictor": REPOSITORY}, licences=LICENCES
    )
    config = BundleConfig(rule=rule, size=predictor.config.image_size, training=facts)
    return in_memory(config, velocity, Restorer(rule, predictor=predictor))


def _arguments(path: Path) -> tuple[Mapping[str, Any], Path]:
    """Return the constructor's arguments, and the file with the weights."""
    weights = path if path.is_file() else path / WEIGHTS
    if not weights.is_file():
        raise CheckpointNotFoundError(f"{weights}: no such file; {WHERE}")
    if path.is_file():
        arguments = read_file(path).get("hyper_parameters")
        source = f"{path}: its hyper_parameters"
    else:
        arguments = json.loads((path / CONFIG).read_bytes())
        source = str(path / CONFIG)
    expected = {"stage": "flow", "conditional": False, "eps": 0}
    if not isinstance(arguments, Mapping) or not {"arch", "mmse_model_arch"} <= arguments.keys():
        raise CheckpointError(f"{source}: no arguments of PMRF's; {WHERE}")
    for name, value in expected.items():
        if arguments.get(name, value) != value:
            raise CheckpointError(
                f"{source}: {name} is {arguments[name]!r}, and only {value!r} is read here: the "
                f"flow from the posterior mean; {WHERE}"
            )
    for name, table in (("arch", VELOCITIES), ("mmse_model_arch", PREDICTORS)):
        if arguments[name] not in table:
            raise CheckpointError(
                f"{source}: {name} is {arguments[name]!r}; known are {', '.join(table)}; {WHERE}"
            )
    return arguments, weights


def _velocity(arguments: Mapping[str, Any], weights: Path) -> HDiT:
    network = HDiT(VELOCITIES[arguments["arch"]])
    load_pmrf(network, weights)
    return network.eval().requires_grad_(False)


def _predictor(arguments: Mapping[str, Any], weights: Path) -> SwinIR:
    network = SwinIR(PREDICTORS[arguments["mmse_model_arch"]])
    key = "state_dict" if weights.suffix == ".ckpt" else None
    load_strict(network, read_state_dict(weights, key=key, prefix="mmse_model."), weights)
    return network.eval().requires_grad_(False)
