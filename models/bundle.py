"""A bundle: one folder with all that restores faces, by which a finished model is handed on.

    BUNDLE/bundle.json     the way an image takes, the digests of the parts, facts of the training
    BUNDLE/README.md       the model card, for people
    BUNDLE/velocity/       the flow's network, as `models.checkpoint` saves it
    BUNDLE/vae/            the autoencoder of a latent flow, as `models.frozen.load_vae` reads it
    BUNDLE/predictor/      of the posterior mean
    BUNDLE/regressor/      where the source of the flow is regressed

The digest of a part covers its weights and its configuration. That of the bundle covers the parts
and all else in bundle.json that a restored image depends on; so whatever is changed in a file, the
bundle restores as before, or it is refused.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.bundle_card import CARD, model_card
from models.bundle_facts import BUNDLE, PARTS, BundleConfig, Dtype, PartName, needed, read_bundle
from models.checkpoint import (
    CheckpointError,
    CheckpointNotFoundError,
    replace_file,
    save_checkpoint,
    weights_digest,
)
from models.frozen import (
    load_autoencoder,
    load_hdit,
    load_looformer,
    load_posterior_mean,
    load_regressor,
)
from models.restorer import Restorer
from models.vae.folder import save_sim_vae
from models.vae.public import PublicVAE, save_public_vae
from models.vae.sim_vae import SimVAE

PARTIAL = ".partial"
UNFINISHED = f"{BUNDLE}{PARTIAL}"  # says that the parts here are of a bundle that is being written


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose networks are in memory; `load_bundle` has them in float32 on the CPU."""

    config: BundleConfig
    velocity: nn.Module
    restorer: Restorer

    @property
    def parts(self) -> dict[PartName, nn.Module]:
        """The networks that are there, by name."""
        around = self.restorer
        found = (self.velocity, around.vae, around.predictor, around.regressor)
        return {name: part for name, part in zip(PARTS, found, strict=True) if part is not None}


def in_memory(
    config: BundleConfig, velocity: nn.Module, restorer: Restorer, dtype: Dtype = "float32"
) -> Bundle:
    """Make a bundle of networks, with their digests.

    Args:
        config: of the bundle; its digests are not looked at.
        velocity: the flow's network.
        restorer: the networks around it.
        dtype: what the weights are to be stored in.

    Raises:
        CheckpointError: the way that images take needs a part that is not there.
    """
    bundle = Bundle(replace(config, dtype=dtype), velocity, restorer)
    if lacking := [name for name in needed(restorer.rule) if name not in bundle.parts]:
        raise CheckpointError(f"a bundle needs the {' and the '.join(lacking)} too")
    digests = {name: part_digest(part, dtype) for name, part in bundle.parts.items()}
    return replace(bundle, config=replace(bundle.config, parts=digests))


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
    loaded = {name: _loaded(name, where(name), config) for name in config.parts}
    for name in needed(config.rule):
        if name not in loaded:
            raise CheckpointError(f"{path}: names no {name}; copy the whole bundle again")
    velocity = loaded.pop("velocity")
    return Bundle(config, velocity, Restorer(config.rule, **loaded))


def _loaded(name: PartName, where: str, config: BundleConfig) -> Any:
    """Load a part that is the one that bundle.json names."""
    loaders: Mapping[PartName, Callable[[str], Any]] = {
        "velocity": load_looformer if config.rule.space == "latent" else load_hdit,
        "vae": load_autoencoder,
        "predictor": lambda folder: load_posterior_mean(folder)[0],
        "regressor": lambda folder: load_regressor(folder)[0],
    }
    try:
        network = loaders[name](where)
    except MemoryError:
        raise
    except Exception as error:  # a changed configuration can fail in any line of a network
        kind = CheckpointNotFoundError if isinstance(error, FileNotFoundError) else CheckpointError
        raise kind(
            f"the bundle's {name} cannot be loaded: {error}. Copy the whole bundle again"
        ) from error
    if (found := part_digest(network)) != config.parts[name]:
        raise CheckpointError(
            f"{where}: this {name} is {found[:12]}, and {BUNDLE} names {config.parts[name][:12]}: "
            "another network lies there, or the copy is damaged; copy the whole bundle again"
        )
    return network


def part_digest(network: nn.Module, dtype: Dtype = "float32") -> str:
    """Hash a part's kind, configuration and weights, as they are once loaded to float32.

    Args:
        network: the part.
        dtype: what it is stored in before it is loaded.
    """
    weights = {
        name: value.float() if value.is_floating_point() else value
        for name, value in _stored(network, dtype).items()
    }
    facts = [type(network).__name__, _config(network), weights_digest(weights)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def write_bundle(folder: str | Path, bundle: Bundle) -> None:
    """Write a bundle; one that lies there is replaced, and other files there stay.

    The old bundle stays whole until all parts of the new one are on the disk. Whoever is killed
    between two of them leaves no bundle.json, without which no bundle is loaded.

    Args:
        folder: made if it is missing.
        bundle: as of `in_memory`.

    Raises:
        CheckpointError: the folder holds something else under one of a bundle's names.
    """
    folder, config = Path(folder), bundle.config
    _refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / UNFINISHED).touch()
    try:
        for name, network in bundle.parts.items():
            shutil.rmtree(folder / f"{name}{PARTIAL}", ignore_errors=True)
            _save(folder / f"{name}{PARTIAL}", network, _stored(network, config.dtype))
        (folder / BUNDLE).unlink(missing_ok=True)
        for name in PARTS:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in bundle.parts:
            (folder / f"{name}{PARTIAL}").rename(folder / name)
    finally:
        for name in PARTS:
            shutil.rmtree(folder / f"{name}{PARTIAL}", ignore_errors=True)
    replace_file(folder / CARD, lambda path: path.write_text(model_card(config)))
    replace_file(folder / BUNDLE, lambda path: path.write_text(config.to_json()))
    (folder / UNFINISHED).unlink()


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder in which something else has one of the names, such as a trained VAE."""
    if any((folder / name).exists() for name in (BUNDLE, UNFINISHED)):
        return
    if taken := [name for name in (*PARTS, CARD) if (folder / name).exists()]:
        raise CheckpointError(
            f"{folder}: holds {taken[0]}, which is not of a bundle, and a bundle would replace it; "
            "give a folder of its own, or move that away"
        )


def _config(network: nn.Module) -> dict[str, Any]:
    """Return what a part is built from, as JSON values."""
    config: Any = network.config
    return dict(config) if isinstance(network, PublicVAE) else asdict(config)


def _save(folder: Path, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    if isinstance(network, SimVAE):
        save_sim_vae(network, folder, state)
    elif isinstance(network, PublicVAE):
        save_public_vae(network, folder, state)
    else:
        save_checkpoint(folder, state, _config(network))


def _stored(network: nn.Module, dtype: Dtype) -> dict[str, Tensor]:
    """Return the weights as they are stored.

    float16 is for matrices and kernels. Vectors and buffers that it would change stay as they are:
    they are small, and the frequencies that embed the time are among them.

    Raises:
        CheckpointError: a weight that float16 cannot hold.
    """
    state = network.state_dict()
    if dtype == "float32":
        return state
    halved = {
        name for name, value in network.named_parameters(remove_duplicate=False) if value.ndim > 1
    }
    return {name: _half(name, value, is_rounded=name in halved) for name, value in state.items()}


def _half(name: str, value: Tensor, *, is_rounded: bool) -> Tensor:
    """Return a tensor in float16, unless that changes what is not to be rounded."""
    if not value.is_floating_point():
        return value
    half = value.half()
    if is_rounded and not half.isfinite().all():
        raise CheckpointError(
            f"the weight {name} reaches {value.abs().max():.3g}, and float16 ends at 65504: store "
            "the bundle in float32"
        )
    return half if is_rounded or torch.equal(half.to(value.dtype), value) else value
