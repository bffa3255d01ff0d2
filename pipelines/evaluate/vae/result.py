"""The numbers of compared autoencoders: OUT/vae.json."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.evaluate.summary import Summary, TestSet, Value
from pipelines.evaluate.vae.config import VAEsConfig
from pipelines.evaluate.vae.latents import LatentSums
from pipelines.evaluate.vae.networks import Compared

VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One autoencoder."""

    folder: str
    weights: str
    """SHA-256 of its weights, as `models.frozen` identifies it."""
    config: Mapping[str, Any]
    costs: Mapping[str, Any]
    """Of `networks.Compared.costs`, at the result's size."""
    latents: Mapping[str, Any]
    """Of `latents.LatentSums.statistics`."""
    values: Mapping[str, Value]
    """By metric, as in the evaluation's summary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """All numbers of the command."""

    version: int = VERSION
    input: str
    precision: str
    device: str
    asked: Sequence[str]
    """The metrics that were asked for by name."""
    size: tuple[int, int]
    """Width and height at which costs are counted: those of most pictures."""
    test_set: TestSet
    vaes: Mapping[str, Row]
    missing: Mapping[str, str]
    """Metrics that could not be computed, and why."""
    notes: Sequence[str]
    """What a user should know, in sentences."""


def result_of(
    config: VAEsConfig,
    device: str,
    sizes: Counter[tuple[int, int]],
    vaes: Sequence[Compared],
    sums: Mapping[str, LatentSums],
    summary: Summary,
) -> Result:
    """Put the numbers together.

    Args:
        config: of the command.
        device: that computed.
        sizes: pictures by width and height.
        vaes: the autoencoders.
        sums: over the latents of each, by name.
        summary: of the evaluation, whose methods are the autoencoders.
    """
    size = max(sizes, key=lambda size: (sizes[size], size))
    notes = list(summary.notes)
    if len(sizes) > 1:
        notes.append(
            f"costs are counted at {size[0]} x {size[1]} pixels, which {sizes[size]:,} of "
            f"{sizes.total():,} pictures have"
        )
    rows = {
        vae.name: Row(
            folder=config.folders[vae.name],
            weights=vae.identity.weights,
            config=dict(vae.identity.config),
            costs=vae.costs(size),
            latents=sums[vae.name].statistics(),
            values=summary.methods[vae.name].values,
        )
        for vae in vaes
    }
    return Result(
        input=config.input,
        precision=config.precision,
        device=device,
        asked=config.measure.metrics,
        size=size,
        test_set=summary.test_set,
        vaes=rows,
        missing=summary.missing,
        notes=notes,
    )
