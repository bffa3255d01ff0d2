"""Files of scores: which scorer gave them, on what scale, in which direction, for which crops.

    {"format": "latent-pmrf/scores/1", "scorer": {"name": "brisque", "digest": ...},
     "scale": [0, 100], "higher_is_better": false, "crop": {"mode": "crop", "size": 512, ...},
     "scores": {"0000001_s001": 23.7, ...}}

The authors of Latent-PMRF publish {key: score} alone, of Q-Align. Such a file says nothing of
itself, and is read only where it is named as theirs: ``authors:FILE.json``.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from infra.config import STRICT, pretty_json, to_dict
from infra.errors import UsageError
from infra.paths import AnyPath, path_of, write_bytes
from infra.storage import explained
from models.metrics.catalog import METRICS
from pipelines.jobs.paths import absolute

AUTHORS = "authors:"
WHOLE_IMAGES = {"mode": "whole"}
"""The crop of scores of whole images."""


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class ScoreFile:
    """What a file of scores holds."""

    format: Literal["latent-pmrf/scores/1"] = "latent-pmrf/scores/1"
    """Name and version of the format."""
    scorer: dict[str, str]
    """Identity of the scorer: name, digest of its weights, settings."""
    scale: tuple[float, float]
    """Its typical lowest and highest value."""
    higher_is_better: bool
    """Its direction."""
    crop: dict[str, Any]
    """How the candidates were cut; empty where that is not known."""
    scores: dict[str, float]
    """By the key of a candidate."""

    def __post_init__(self) -> None:
        if not self.scorer.keys() >= {"name", "digest"}:
            raise ValueError(f"scorer {self.scorer}: must have a name and a digest")
        name = self.scorer["name"]
        metric = METRICS.get(name)
        if metric is None or metric.scale is None:
            known = ", ".join(name for name, metric in METRICS.items() if metric.scale)
            raise ValueError(f"scorer {name!r}: not known here; known are {known}")
        if (self.scale, self.higher_is_better) != (metric.scale, metric.higher_is_better):
            raise ValueError(
                f"scale {self.scale} and higher_is_better {self.higher_is_better} are not those "
                f"of {name}, which are {metric.scale} and {metric.higher_is_better}"
            )


def write_scores(
    target: AnyPath, scores: Mapping[str, float], scorer: Mapping[str, Any], crop: Mapping[str, Any]
) -> None:
    """Write a file of scores.

    Args:
        target: the file.
        scores: by key.
        scorer: its identity, with ``scale`` and ``higher_is_better`` beside.
        crop: how the candidates were cut.
    """
    about = {"scale": tuple(scorer["scale"]), "higher_is_better": scorer["higher_is_better"]}
    identity = {name: value for name, value in scorer.items() if name not in about}
    file = ScoreFile(scorer=identity, crop=dict(crop), scores=dict(scores), **about)
    write_bytes(target, pretty_json(to_dict(file)))


def is_score_file(name: str) -> bool:
    """Tell whether the name of a scorer is that of a file."""
    return name.endswith(".json")


def absolute_name(name: str) -> str:
    """Make the path absolute in the name of a scorer that is a file; any other name stays."""
    path = name.removeprefix(AUTHORS)
    return name[: -len(path)] + absolute(path) if is_score_file(name) else name


def read_scores(name: str) -> tuple[ScoreFile, str]:
    """Read a file of scores.

    Args:
        name: ``FILE.json``, or ``authors:FILE.json`` for one in the authors' format.

    Returns:
        What it holds, and its SHA-256.

    Raises:
        UsageError: it is not what its name says, or of a scorer that is not known here.
    """
    path = name.removeprefix(AUTHORS)
    try:
        data = path_of(path).read_bytes()
    except OSError as error:
        raise UsageError(f"--scorer {name}: {explained(error, path)}") from error
    try:
        file = _of_authors(data) if name != path else TypeAdapter(ScoreFile).validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in fault["loc"])
        expected = (
            "expected the authors' {key: score} with scores of Q-Align, from 1 to 5"
            if name != path
            else "expected a file that export-scores or pipelines.score wrote; if it is the "
            f"authors' {{key: score}} of Q-Align, write --scorer {AUTHORS}{path}"
        )
        raise UsageError(f"--scorer {name}: {where}: {fault['msg']}; {expected}") from error
    return file, hashlib.sha256(data).hexdigest()


def _of_authors(data: bytes) -> ScoreFile:
    """Read {key: score}, which are Q-Align's scores: nothing below 1 or above 5."""
    metric = METRICS["qalign"]
    assert metric.scale is not None
    low, high = metric.scale
    scores = TypeAdapter(dict[str, Annotated[float, Field(ge=low, le=high)]]).validate_json(data)
    return ScoreFile(
        scorer={"name": "qalign", "digest": "unknown"},
        scale=metric.scale,
        higher_is_better=metric.higher_is_better,
        crop={},
        scores=scores,
    )
