"""A bundle: one folder with all that restores faces, by which a finished model is handed on.

    BUNDLE/bundle.json     the way an image takes, the digests of the weights, facts of the training
    BUNDLE/README.md       the model card, for people
    BUNDLE/velocity/       the flow's network, as `models.checkpoint` saves it
    BUNDLE/vae/            the autoencoder of a latent flow, as `models.frozen.load_vae` reads it
    BUNDLE/predictor/      of the posterior mean
    BUNDLE/regressor/      where the source of the flow is regressed

Its digest is taken of everything in bundle.json that a restored image depends on, so that two
bundles of one digest restore alike, wherever they were copied.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as checked
from torch import nn

from models.checkpoint import (
    CheckpointError,
    CheckpointNotFoundError,
    replace_file,
    save_checkpoint,
    weights_digest,
)
from models.configuration import STRICT, config_from_dict
from models.frozen import load_hdit, load_looformer, load_posterior_mean, load_regressor, load_vae
from models.predictor.swinir import SwinIR
from models.restorer import RestorationRule, Restorer, Solver
from models.vae.folder import save_sim_vae
from models.vae.public import PublicVAE
from models.vae.sim_vae import SimVAE
from models.velocity.hdit import HDiT
from models.velocity.looformer import LooUFormer

BUNDLE, CARD = "bundle.json", "README.md"
FORMAT: Final = "latent-pmrf bundle 1"
PARTS = ("velocity", "vae", "predictor", "regressor")


@checked(frozen=True, kw_only=True, slots=True, config=STRICT)
class BundleConfig:
    """What stands in bundle.json."""

    format: Literal["latent-pmrf bundle 1"] = FORMAT
    rule: RestorationRule
    """Which way an image takes."""
    size: PositiveInt
    """Side of the images that it was trained on, in pixels."""
    alignment: Literal["ffhq", "any"] = "ffhq"
    """How these show a face: framed as FFHQ's are, or in any way."""
    steps: PositiveInt = 25
    """Of the solver, where the user names no other number."""
    solver: Solver = "euler"
    weights: dict[str, str]
    """Digest of the weights of each part that is there."""
    training: dict[str, Any] = field(default_factory=dict)
    """Facts for people: steps, data, numbers of the validation."""

    @property
    def method(self) -> Literal["latent-pmrf", "pmrf"]:
        """The name of the flow's method: PMRF is the one in pixels."""
        return "latent-pmrf" if self.rule.space == "latent" else "pmrf"

    @property
    def digest(self) -> str:
        """SHA-256 in hex of everything that a restored image depends on."""
        facts = {name: value for name, value in asdict(self).items() if name != "training"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose networks are in memory, in float32 on the CPU, frozen."""

    config: BundleConfig
    velocity: nn.Module
    restorer: Restorer


@dataclass(frozen=True, slots=True)
class Parts:
    """The networks to put into a bundle."""

    velocity: LooUFormer | HDiT
    vae: SimVAE | PublicVAE | None = None
    predictor: SwinIR | None = None
    regressor: LooUFormer | None = None


def read_bundle(text: bytes, source: str) -> BundleConfig:
    """Read bundle.json.

    Raises:
        CheckpointError: it is none, or of a later format; ``source`` names it.
    """
    try:
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise CheckpointError(
                f"{source}: of the format {values['format']!r}, this program reads {FORMAT!r}; "
                "update the program"
            )
        return config_from_dict(BundleConfig, values)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{source}: no bundle of ours ({error}); copy it again") from error


def load_bundle(folder: str | Path, part: Callable[[str], str] | None = None) -> Bundle:
    """Load all networks of a bundle and compare their digests.

    Args:
        folder: the bundle's, or what holds its bundle.json.
        part: returns the folder of a part by its name, where the parts lie elsewhere.

    Raises:
        CheckpointError: a part is missing, damaged, or not the one that bundle.json names.
    """
    folder = Path(folder)
    path = folder / BUNDLE
    if not path.is_file():
        raise CheckpointNotFoundError(
            f"{path}: no such file; a bundle is the folder that a training ends with, or that "
            "`python -m pipelines.restore export RUN BUNDLE` writes"
        )
    config = read_bundle(path.read_bytes(), str(path))
    where = part or (lambda name: str(folder / name))
    loaded: dict[str, Any] = {}
    for name, digest in config.weights.items():
        loaded[name] = _load(name, where(name), config)
        if (found := part_digest(loaded[name])) != digest:
            raise CheckpointError(
                f"{folder}: the weights in {name}/ are {found[:12]}, {BUNDLE} names {digest[:12]}: "
                "another network lies there, or the copy is damaged; copy the whole bundle again"
            )
    if "velocity" not in loaded:
        raise CheckpointError(f"{path}: names no velocity network; copy the bundle again")
    velocity = loaded.pop("velocity")
    return Bundle(config, velocity, Restorer(config.rule, **loaded))


def _load(name: str, where: str, config: BundleConfig) -> Any:
    loaders: Mapping[str, Callable[[str], Any]] = {
        "velocity": load_looformer if config.rule.space == "latent" else load_hdit,
        "vae": lambda folder: load_vae(folder)[0],
        "predictor": lambda folder: load_posterior_mean(folder)[0],
        "regressor": lambda folder: load_regressor(folder)[0],
    }
    return loaders[name](where)


def part_digest(network: nn.Module) -> str:
    """Hash the weights of a part; of a scaled autoencoder its scaling too."""
    return weights_digest(network.state_dict())


def write_bundle(folder: str | Path, parts: Parts, config: BundleConfig, card: str) -> BundleConfig:
    """Write a bundle; bundle.json comes last, so that what a killed writer leaves is refused.

    Args:
        folder: made if it is missing; a bundle in it is replaced.
        parts: the networks.
        config: of the bundle; its digests are taken of the parts.
        card: the model card, in Markdown.

    Returns:
        The configuration with the digests.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BUNDLE).unlink(missing_ok=True)
    weights = {}
    for name in PARTS:
        network = getattr(parts, name)
        if network is not None:
            _save(folder / name, network)
            weights[name] = part_digest(network)
    config = config_from_dict(BundleConfig, {**asdict(config), "weights": weights})
    replace_file(folder / CARD, lambda path: path.write_text(card))
    text = json.dumps(asdict(config), indent=1) + "\n"
    replace_file(folder / BUNDLE, lambda path: path.write_text(text))
    return config


def _save(folder: Path, network: Any) -> None:
    if isinstance(network, SimVAE):
        save_sim_vae(network, folder)
    elif isinstance(network, PublicVAE):
        network.vae.register_to_config(scaling_factor=network.scale, shift_factor=network.shift)
        network.vae.save_pretrained(folder)
    else:
        save_checkpoint(folder, network.state_dict(), asdict(network.config))
