"""What `python -m pipelines.score` is told."""

from dataclasses import field
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from infra.config import STRICT
from pipelines.jobs.scorer_choice import Device, ScorerChoice


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class ScoreConfig:
    """What to score and with what."""

    images: tuple[str, ...] = ()
    """Folders, images, .tar, .tar.gz, .tar.zst, .tar.xz, .zip, or s3://; NAME= prefixes keys."""
    output: str = ""
    """Table of scores (.csv), or .json for --scorer, with its table beside; default: none."""
    scorer: ScorerChoice = field(default_factory=ScorerChoice)
    """The scorer."""
    device: Device = "cuda"
    """Q-Align: cuda or cpu; the other never takes its place."""
    max_bad: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of broken images above which the exit code is 3."""

    def __post_init__(self) -> None:
        if self.scorer.name not in ("qalign", "brisque"):
            raise ValueError(f"scorer {self.scorer.name!r}: choose qalign or brisque")
        if self.output and not self.output.endswith((".json", ".csv")):
            raise ValueError(f"output {self.output!r}: a name that ends in .json or .csv")


PRESETS = {"qalign": ScoreConfig(), "brisque": ScoreConfig(scorer=ScorerChoice(name="brisque"))}
