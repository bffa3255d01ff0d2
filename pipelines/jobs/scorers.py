"""The quality scorers behind one small contract: patches by image in, scores out, in order.

A scorer is described without loading it (the driver needs its identity and threshold, not its
weights) and loaded once per worker. None ever takes another's place.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from datasets.decoding import Pixels
from infra.ahead import map_ahead
from infra.copies import local_copy
from infra.errors import UsageError, UserError
from infra.paths import path_of
from models.metrics.catalog import METRICS
from pipelines.jobs.score_file import AUTHORS, is_score_file, read_scores
from pipelines.jobs.scorer_choice import Device, ScorerChoice


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerInfo:
    """What is known of a scorer without running it."""

    name: str
    """The metric's own name, as reports print it."""
    digest: str
    """Identity of its weights."""
    scale: tuple[float, float]
    """Typical lowest and highest value."""
    higher_is_better: bool
    """Direction of the scale."""
    default_threshold: float | None
    """What is kept when the user names no threshold; None keeps everything."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Whatever else a score depends on: model, prompt, dtype; the digest of an imported file."""
    crop: Mapping[str, Any] = field(default_factory=dict)
    """How the candidates of an imported file were cut, where it says so."""

    def identity(self) -> dict[str, str]:
        """Return what two scores must share to be comparable."""
        return {"name": self.name, "digest": self.digest, **self.settings}


class Quality(NamedTuple):
    """One score: NaN where the metric is undefined; what else the scorer says, if anything."""

    value: float
    detail: Mapping[str, Any] | None = None


class QualityScorer(Protocol):
    """A loaded scorer, one per worker."""

    def score(self, images: Iterable[Sequence[Pixels]]) -> Iterator[Quality]:
        """Score the RGB uint8 [H, W, 3] patches of images as they come; results in the same order.

        Scores are functions of the image and of the scorer's identity, to the last bit on one kind
        of machine: what is scored before or after an image does not matter.
        """
        ...


class _Brisque:
    def __init__(self) -> None:
        from models.metrics.brisque import Brisque

        self._model = Brisque()

    def score(self, images: Iterable[Sequence[Pixels]]) -> Iterator[Quality]:
        for patch in chain.from_iterable(images):
            yield Quality(self._model.score([patch])[0])


class _Unscored:
    """Everything decodable is kept, as the paper does with FFHQ; the score is undefined."""

    def score(self, images: Iterable[Sequence[Pixels]]) -> Iterator[Quality]:
        for _ in chain.from_iterable(images):
            yield Quality(math.nan)


class _QAlign:
    def __init__(self, choice: ScorerChoice, device: Device) -> None:
        from models.qalign.scorer import QAlign

        weights = weights_here(choice)
        self._model = QAlign.load(weights, device, choice.dtype, choice.prompt, choice.batch)

    def score(self, images: Iterable[Sequence[Pixels]]) -> Iterator[Quality]:
        threads = min(16, os.cpu_count() or 1)
        preparing = partial(map_ahead, threads=threads, ahead=2 * self._model.batch_size)
        for (score,) in self._model.stream_groups(images, (self._model.prompt,), preparing):
            yield Quality(score.value, {"logits": list(score.logits)})


class ImportedScores:
    """Scores of a file, which belong to the keys of candidates."""

    def __init__(self, name: str) -> None:
        self.scores = read_scores(name)[0].scores

    def score(self, images: Iterable[Sequence[Pixels]]) -> Iterator[Quality]:
        """Refuse: imported scores belong to keys, not to pixels."""
        raise TypeError("imported scores are looked up by key")


def describe(choice: ScorerChoice, device: Device) -> ScorerInfo:
    """Say what a scorer is; weights are looked at, not loaded.

    Raises:
        UsageError: an unknown name; weights that are absent, damaged or of another model.
    """
    if choice.name == "brisque":
        from models.metrics.brisque import Brisque

        return _info("brisque", Brisque().digest)
    if choice.name == "qalign":
        return _describe_qalign(choice, device)
    if choice.name == "none":
        return ScorerInfo(
            name="none",
            digest="none",
            scale=(0.0, 0.0),
            higher_is_better=True,
            default_threshold=None,
        )
    if is_score_file(choice.name):
        file, digest = read_scores(choice.name)
        settings = {k: v for k, v in file.scorer.items() if k not in ("name", "digest")}
        info = _info(file.scorer["name"], file.scorer["digest"], settings | {"file": digest})
        return replace(info, crop=file.crop)
    raise UsageError(
        f"--scorer {choice.name}: choose brisque, qalign, none, FILE.json as export-scores writes "
        f"it, or {AUTHORS}FILE.json"
    )


def _describe_qalign(choice: ScorerChoice, device: Device) -> ScorerInfo:
    from models.qalign.checkpoint import Checkpoint
    from models.qalign.prompts import find_prompt

    dtype = choice.dtype or ("float16" if device == "cuda" else "float32")
    try:
        find_prompt(choice.prompt)
        weights = weights_here(choice)
        digest = Checkpoint.open(weights).digest
    except (ValueError, OSError) as error:
        raise UsageError(f"--scorer qalign: {error}") from error
    folder = Path(weights)
    settings = {
        "model": folder.resolve().name if folder.is_dir() else choice.weights,
        "prompt": choice.prompt,
        "dtype": dtype,
        "batch": str(choice.batch),
    }
    return _info("qalign", digest, settings)


def weights_here(choice: ScorerChoice) -> str:
    """Return the weights of a learned scorer on this machine: a folder, or a hub id.

    A folder in a bucket is copied, once for all processes of the machine.
    """
    return str(local_copy(path_of(choice.weights)))


def _info(name: str, digest: str, settings: Mapping[str, str] | None = None) -> ScorerInfo:
    """Describe a metric of the catalogue as a scorer."""
    metric = METRICS[name]
    if metric.scale is None:
        raise ValueError(f"METRICS[{name!r}] has no scale: give it one, for curation's report")
    return ScorerInfo(
        name=name,
        digest=digest,
        scale=metric.scale,
        higher_is_better=metric.higher_is_better,
        default_threshold=metric.default_threshold,
        settings=settings or {},
    )


def load(choice: ScorerChoice, device: Device) -> QualityScorer:
    """Load a scorer in this process.

    Raises:
        UserError: it cannot run here; no other scorer and no other device takes its place.
    """
    if choice.name == "brisque":
        return _Brisque()
    if choice.name == "none":
        return _Unscored()
    if choice.name == "qalign":
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "--scorer qalign: no CUDA device here; give --device cpu (pipelines.score) or "
                "--scorer-gpus 0 (pipelines.curate) to score on the CPU, which is slow"
            )
        try:
            return _QAlign(choice, device)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            raise UserError(f"--scorer qalign: {error}") from error
    return ImportedScores(choice.name)
