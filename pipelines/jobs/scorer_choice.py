"""Which quality scorer a command asks for; light, so that a command line is checked quickly."""

from typing import Annotated, Literal

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from tyro.conf import arg

from infra.config import STRICT

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class ScorerChoice:
    """Which scorer, and what a learned one needs."""

    name: Annotated[str, arg(name="scorer")] = "qalign"
    """brisque or qalign; pipelines.curate also takes none, FILE.json or authors:FILE.json."""
    weights: Annotated[str, arg(name="scorer-weights")] = "q-future/one-align"
    """Q-Align: a folder with the published files, a path or s3://, or a hub id."""
    prompt: Annotated[str, arg(name="scorer-prompt")] = "quality"
    """Q-Align: name of the question asked, such as quality or aesthetics."""
    dtype: Annotated[Literal["float16", "bfloat16", "float32"] | None, arg(name="scorer-dtype")] = (
        None
    )
    """Q-Align: by default float16 on CUDA, float32 on a CPU."""
    batch: Annotated[PositiveInt, arg(name="scorer-batch")] = 8
    """Q-Align: patches of an image per forward pass; the last bits of a score depend on it."""
