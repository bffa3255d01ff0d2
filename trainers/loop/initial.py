"""Weights to begin with, for fine-tuning: where they are found, and what they were.

A run or a checkpoint gives its averaged weights; `step-…/model` the weights themselves. Optimiser,
averages and step begin anew.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from infra.config import differences, flat, to_dict
from infra.copies import local_copy
from infra.distributed import by_first
from infra.errors import UsageError, UserError
from infra.paths import path_of
from models.checkpoint import (
    CONFIG,
    WEIGHTS,
    CheckpointError,
    load_checkpoint,
    load_strict,
    weights_digest,
)
from models.vae.folder import WEIGHTS_FILE
from trainers.loop.checkpoints import RECORD, whole
from trainers.loop.config import TrainerConfig
from trainers.loop.place import CHECKPOINTS, OTHER, work_folder
from trainers.loop.task import Task


def begin_with(task: Task, where: str) -> str:
    """Give the network of a task other weights; all ranks call it.

    Args:
        task: whose network has the weights of its own seed.
        where: as `LoopConfig.init_from` says.

    Returns:
        SHA-256 of the weights in hex, by `weights_digest`.

    Raises:
        UserError: no such weights, damaged ones, or those of another architecture.
    """
    option = f"--init-from {where}"
    try:
        config, state = _weights(task, _found(where, option, task.config))
        changed = differences(_plain(task.network), flat(config))
        if changed:
            raise UserError(
                f"{option}: weights of another architecture ({'; '.join(changed)}; the first is "
                "theirs, the second this run's): give the --model that they are of"
            )
        load_strict(task.network, state, option)
    except CheckpointError as error:
        raise UserError(f"{option}: {error}") from error
    return weights_digest(task.network.state_dict())


def _found(where: str, option: str, config: TrainerConfig) -> Path:
    """Return the folder or file on this machine that holds the weights."""
    path = path_of(where)
    if by_first(lambda: (path / CHECKPOINTS).is_dir() or (path / RECORD).is_file()):
        copies = work_folder(config.loop) / OTHER
        checkpoint = whole(option, path, copies, below=(RECORD, "ema-"))
        return checkpoint.folder / f"ema-{checkpoint.record['config']['ema']['decays'][0]}"
    if isinstance(path, Path) and not path.exists():
        return _downloaded(where, option)
    return local_copy(path)


def _weights(task: Task, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the configuration and the weights."""
    if (path / WEIGHTS).is_file():
        return load_checkpoint(path)
    network = task.published(path)
    return _plain(network), network.state_dict()


def _downloaded(where: str, option: str) -> Path:
    """Return the folder of a repository ORGANISATION/NAME of the Hugging Face hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    files = [CONFIG, WEIGHTS, WEIGHTS_FILE]
    try:
        return Path(snapshot_download(where, allow_patterns=files))
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        raise UsageError(
            f"{option}: no such file or folder here, and the Hugging Face hub did not deliver it "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). Give a run, a "
            f"checkpoint, or a folder with {CONFIG} and {WEIGHTS} or {WEIGHTS_FILE}"
        ) from error


def _plain(network: nn.Module) -> dict[str, Any]:
    """Return a network's configuration as JSON values, by dotted name."""
    return flat(to_dict(network.config))
