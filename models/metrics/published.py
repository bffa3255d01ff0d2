"""Networks whose weights others published as one file: found, loaded strictly, frozen."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from models.checkpoint import CheckpointNotFoundError, load_strict, read_state_dict, weights_digest

IQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main"
COUNTER = "num_batches_tracked"
Network = TypeVar("Network", bound=nn.Module)


class PublishedFile(NamedTuple):
    """A file of weights that the user has to get; nothing is downloaded."""

    name: str
    """Its published name, under which it is looked for."""
    size: str
    """How large it is, for people."""
    where: str
    """The address to get it from."""
    others: tuple[str, ...] = ()
    """Names that the same weights have elsewhere."""
    otherwise: str = ""
    """Where those are."""

    def find(self, folder: str | Path | None, *more: Path) -> Path:
        """Find the file.

        Args:
            folder: where it is; by default torch.hub's cache, or pyiqa's beside it.
            more: files that will do too, after those of a folder.

        Raises:
            CheckpointNotFoundError: it is not there; the message says how to get it.
        """
        folders = [hub_cache(), hub_cache().parent / "pyiqa"] if folder is None else [Path(folder)]
        places = [where / name for where in folders for name in (self.name, *self.others)]
        for place in (*places, *more):
            if place.exists():
                return place
        raise self.missing(*(where / self.name for where in folders))

    def missing(self, path: str | Path, *caches: Path) -> CheckpointNotFoundError:
        """Say that there is no ``path``, where to get the file, and where else it may lie."""
        there = " or as ".join(["there", *map(str, caches)])
        otherwise = self.otherwise and f", or {self.otherwise}"
        return CheckpointNotFoundError(
            f"{path}: no such file; get {self.where} ({self.size}) and put it {there}{otherwise}"
        )


def hub_cache() -> Path:
    """Return where torch.hub keeps weights (TORCH_HOME moves it)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def load_published(
    build: Callable[[], Network], file: PublishedFile, folder: str | Path | None
) -> Network:
    """Load a network's weights; frozen, in evaluation mode, float32 on the CPU.

    The counters of the batch norms may be missing: versions of PyTorch before 0.4.1 saved none, and
    only training reads them.

    Args:
        build: makes the network; all that it computes with are weights of the file.
        file: which file has them.
        folder: see `PublishedFile.find`.

    Raises:
        CheckpointError: the file is missing (and then where to get it), damaged, or of another
            network.
    """
    path = file.find(folder)
    return built(build, read_state_dict(path), path)


def built(build: Callable[[], Network], weights: Mapping[str, Tensor], source: object) -> Network:
    """Build a network with these weights, as `load_published` returns it.

    Raises:
        CheckpointError: weights of another network; ``source`` says where they are from.
    """
    with torch.device("meta"):  # which neither draws numbers nor takes memory for them
        network = build()
    counters = {
        name: torch.zeros((), dtype=torch.int64)
        for name in network.state_dict()
        if name.endswith(COUNTER)
    }
    load_strict(network, {**counters, **weights}, source)
    return network.float().eval().requires_grad_(False)


def published_digest(network: nn.Module) -> str:
    """Hash all that inference reads of a network: SHA-256 in hex, without the counters."""
    weights: dict[str, Tensor] = network.state_dict()
    return weights_digest({k: v for k, v in weights.items() if not k.endswith(COUNTER)})
