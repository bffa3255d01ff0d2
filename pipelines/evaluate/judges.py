"""The metrics of an evaluation: which can be had, of which weights, and loaded ones in a worker."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch

from infra.config import digest
from infra.copies import at_hand
from infra.errors import UsageError, UserError
from models.checkpoint import CheckpointNotFoundError
from models.faces.weights import FacesMissingError
from models.metrics.catalog import METRICS, Judge, SetJudge
from pipelines.evaluate.pairs import Pairs

MISSING = (CheckpointNotFoundError, FacesMissingError)
"""What a metric raises whose weights the user has to get."""
Device = Literal["cuda", "cpu"]
Loaded = TypeVar("Loaded", Judge, SetJudge)


@dataclass(frozen=True, slots=True)
class Found:
    """The metrics that are asked for."""

    digests: Mapping[str, str]
    """SHA-256 of the weights of each that can be had, empty for a formula."""
    missing: Mapping[str, str]
    """Why each of the others cannot be had, and what to do."""


def look(asked: Sequence[str], weights: str, pairs: Pairs) -> Found:
    """Find out which metrics can be had: there are pictures and weights for them.

    Each network is loaded once to learn the digest of its weights, one after the other.

    Args:
        asked: names; none for all.
        weights: see `MeasureConfig.weights`.
        pairs: the pictures.

    Raises:
        UsageError: weights that are damaged or of another network.
    """
    asked = tuple(asked)
    digests: dict[str, str] = {}
    missing: dict[str, str] = {}
    shared: dict[str, str] = {}  # one network serves several metrics of sets
    stored_of = next((name for name in asked if METRICS[name].takes_statistics), "fid")
    for name in asked or METRICS:
        metric = METRICS[name]
        if lacks := lacking(name, pairs, stored_of):
            missing[name] = lacks
            continue
        try:
            if metric.features not in shared or not metric.features:
                shared[metric.features] = metric.digest(folder_of(name, weights))
            digests[name] = shared[metric.features]
        except MISSING as error:
            missing[name] = str(error)
        except (ValueError, OSError) as error:
            raise UsageError(f"metric {name}: {error}") from error
    return Found(digests, missing)


def lacking(name: str, pairs: Pairs, stored_of: str) -> str:
    """Say which pictures a metric needs that are not given; "" if it has all.

    Args:
        name: of the metric.
        pairs: the pictures.
        stored_of: the metric for whose statistics a file of them is taken, which says of itself
            neither of which network nor after which resize it is.
    """
    metric = METRICS[name]
    if metric.kind == "set" and pairs.stored is not None:
        if not metric.takes_statistics:
            return "a file of statistics will not do for it; give --distribution FOLDER"
        return (
            ""
            if name == stored_of
            else (
                f"the file of statistics is taken for that of {stored_of}, and holds those of one "
                f"network and resize; give {name} its own file in another evaluation, or a folder"
            )
        )
    if metric.kind == "set":
        given = pairs.distribution is not None
        return "" if given else "it compares whole sets; give --reference or --distribution"
    if metric.against == "hq" and pairs.hq is None:
        return "it compares with HQ pictures, which this test set has not"
    if metric.against == "posterior_mean" and pairs.posterior_mean is None:
        return "it compares with the predictor's output; give --posterior-mean FOLDER"
    return ""


def folder_of(name: str, weights: str) -> Path | None:
    """Return where a metric looks for its weights, on this machine; None for the caches."""
    if not weights:
        return None
    folder = Path(at_hand(weights))
    return folder / name if (folder / name).is_dir() else folder


def identity(name: str, weights_digest: str, device: str) -> str:
    """Identify what a value depends on beside the pictures: metric, weights, code, device."""
    metric = METRICS[name]
    parts = [metric.variant, metric.implementation, weights_digest, metric.resize]
    return f"{name}:{digest([*parts, metric.dtype_on(device), device])[:12]}"


def features_identity(name: str, weights_digest: str, device: str) -> str:
    """Identify the features of a metric of sets; metrics of one network share them."""
    metric = METRICS[name]
    parts = [metric.implementation, weights_digest, metric.resize, metric.dtype_on(device), device]
    return f"{metric.features}:{digest(parts)[:12]}"


class Judges:
    """Loaded metrics of one process, each from the first time it is asked for.

    Args:
        digests: of the weights that each must have.
        weights: see `MeasureConfig.weights`.
        device: where to compute.
    """

    def __init__(self, digests: Mapping[str, str], weights: str, device: str) -> None:
        self.digests, self.weights, self.device = digests, weights, torch.device(device)
        self._images: dict[str, Judge] = {}
        self._sets: dict[str, SetJudge] = {}

    def of_images(self, name: str) -> Judge:
        """Return a metric of single pictures.

        Raises:
            UserError: its weights are not here, or are others than the command saw.
        """
        if name not in self._images:
            self._images[name] = self._checked(name, METRICS[name].load)
        return self._images[name]

    def of_sets(self, name: str) -> SetJudge:
        """Return a metric of whole sets; those of the same features share their network."""
        features = METRICS[name].features
        if features not in self._sets:
            self._sets[features] = self._checked(name, METRICS[name].load_set)
        return self._sets[features]

    def _checked(self, name: str, load: Callable[..., Loaded]) -> Loaded:
        try:
            judge = load(folder_of(name, self.weights), self.device)
        except (ValueError, OSError) as error:
            raise UserError(f"metric {name}, on a worker: {error}") from error
        if judge.digest != self.digests[name]:
            raise UserError(
                f"metric {name}: a worker has weights {judge.digest[:12]}, the command has "
                f"{self.digests[name][:12]}; give all machines the same files"
            )
        return judge
