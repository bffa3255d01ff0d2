"""Networks whose weights others published as one file: found, loaded strictly, frozen."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from models.checkpoint import CheckpointNotFoundError, load_strict, read_state_dict, weights_digest
from models.metrics.backbones import hub_cache

COUNTER = "num_batches_tracked"
Network = TypeVar("Network", bound=nn.Module)


class PublishedFile(NamedTuple):
    """A file of weights that the user has to get."""

    name: str
    """Its published name, under which it is looked for."""
    size: str
    """How large it is, for people."""
    where: str
    """The address to get it from."""


def load_published(
    build: Callable[[], Network], file: PublishedFile, folder: str | Path | None
) -> Network:
    """Load a network's weights; frozen, in evaluation mode, float32 on the CPU.

    The counters of the batch norms may be missing: versions of PyTorch before 0.4.1 saved none, and
    only training reads them.

    Args:
        build: makes the network; all that it computes with are weights of the file.
        file: which file has them.
        folder: where it is; by default torch.hub's cache. Nothing is downloaded.

    Raises:
        CheckpointError: the file is missing (and then where to get it), damaged, or of another
            network.
    """
    path = (hub_cache() if folder is None else Path(folder)) / file.name
    try:
        weights = read_state_dict(path)
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{path}: no such file; get {file.name} ({file.size}) from {file.where} and put it "
            "there"
        ) from error
    with torch.device("meta"):  # which neither draws numbers nor takes memory for them
        network = build()
    counters = {
        name: torch.zeros((), dtype=torch.int64)
        for name in network.state_dict()
        if name.endswith(COUNTER)
    }
    load_strict(network, counters | weights, path)
    return network.float().eval().requires_grad_(False)


def published_digest(network: nn.Module) -> str:
    """Hash all that inference reads of a network: SHA-256 in hex, without the counters."""
    weights: dict[str, Tensor] = network.state_dict()
    return weights_digest({k: v for k, v in weights.items() if not k.endswith(COUNTER)})
