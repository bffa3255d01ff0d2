"""The interface of a recipe for the loop: a network, its data, its losses, its validation."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from datasets.reading.loader import Loader
from datasets.reading.order import Layout
from infra.tracking.models import FinishedModel
from trainers.loop.config import TrainerConfig
from trainers.loop.noise import Noise

if TYPE_CHECKING:
    from PIL.Image import Image


class Interrupted(Exception):  # noqa: N818  (an outcome, not a fault)
    """A validation was left, on all ranks at the same batch."""


Between = Callable[[str, int, int], None]
"""What all ranks call together before each batch of a validation.

It is told what is done with the batches, the number of this one, from 0, and how many there are. It
may raise `Interrupted`, which ends the validation.
"""


def unwatched(what: str, number: int, count: int) -> None:
    """Let a validation go on: nobody watches."""


@dataclass(frozen=True, slots=True)
class Validation:
    """Result of a validation; the metrics are the same on every rank."""

    metrics: dict[str, float]
    grid: "Image | None" = None
    """Pictures to look at; on rank 0 only."""


def by_name(sets: Sequence[tuple[str, str, str, str]]) -> dict[str, str]:
    """Return the digests of `Task.data` by name; by place, where two sets share a name."""
    names = [name for name, *_ in sets]
    return {n if names.count(n) == 1 else where: sha256 for n, sha256, where, _ in sets}


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run has come to."""

    step: int
    """Updates done."""
    metrics: dict[str, float]
    """Of the validation of this step; empty if there was none."""
    origin: Mapping[str, Any]
    """Where the run began, see `trainers.loop.start`."""


class Runner(Protocol):
    """What runs the trained module: an engine, or the module by itself."""

    def __call__(self, *inputs: Any) -> Any:
        """Run the forward pass."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context of the forward pass's precision, for networks beside it."""


class Task(Protocol):
    """What is trained, on what, and how it is judged."""

    experiment: str
    """Name of the experiment in MLflow."""
    best: str
    """The metric that checkpoints are kept by; prefixed by "-", less is better."""

    @property
    def config(self) -> TrainerConfig:
        """The run's configuration, in which the data may have decided what was left open."""

    @property
    def network(self) -> nn.Module:
        """The network that is saved and averaged."""

    @property
    def trained(self) -> nn.Module:
        """The module that the engine runs: the network, or one around it; on its device."""

    def published(self, path: Path) -> nn.Module:
        """Load a network, with its configuration, that is no checkpoint of ours, to begin with.

        Raises:
            CheckpointError: no such network.
        """

    def loader(self, layout: Layout, state: Mapping[str, Any] | None) -> Loader[Any]:
        """Open the training data where ``state`` says."""

    def losses(self, engine: Runner, batch: Any, noise: Noise) -> dict[str, Tensor]:
        """Compute a micro-batch's losses: scalars, of which "loss" is minimised."""

    def validate(self, network: nn.Module, between: Between = unwatched) -> Validation:
        """Validate a network on the held-out split; all ranks call it and share the work."""

    def flops_per_sample(self) -> int:
        """Count the floating-point operations of a sample's training, forward and backward."""

    def data(self) -> list[tuple[str, str, str, str]]:
        """Name the data: name, digest, source and use of each set."""

    def networks(self) -> dict[str, str]:
        """Name the frozen networks that the loss depends on, with the SHA-256 of their weights.

        A name is that of the option. Networks count that made cached latents, too.
        """

    def facts(self) -> dict[str, Any]:
        """Tell what else the run's numbers depend on or cost, as JSON values, for its record.

        Under ``validation`` it has what is judged and by what, in which runs that are compared must
        agree; under ``encoding_flops`` what it took to encode the cached latents, all of them once.
        """

    def restoring(self) -> dict[str, Any] | None:
        """Tell what checkpoints say to those who restore with them, as JSON values, if they may."""

    def export(self, network: nn.Module, run: Finished) -> FinishedModel:
        """Write the finished, averaged model for those who use it; on rank 0.

        Args:
            network: of averaged weights.
            run: what its training has come to.

        Returns:
            What to register; its facts are what the network belongs to, such as its autoencoder.
        """
