"""What `python -m pipelines.evaluate convergence` is told besides the runs."""

from typing import Annotated

from pydantic.dataclasses import dataclass
from tyro.conf import arg

from infra.cli import choices
from infra.config import STRICT
from models.metrics.catalog import METRICS


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class ConvergenceConfig:
    """Which runs belong together, by which metrics, into what."""

    output: Annotated[str, arg(aliases=["-o"])] = ""
    """Folder of the page and the tables; made if it is not there."""
    metric: Annotated[tuple[str, ...], choices(*METRICS)] = ()
    """Metrics of the validation; by default all that every run has."""
    group: tuple[str, ...] = ()
    """NAME=RUN,RUN of runs that differ in their seed only. Every RUN that is given without a group
    is one by itself. What stands first is what the others are compared with."""

    def __post_init__(self) -> None:
        for name in self.metric:
            if name not in METRICS:
                raise ValueError(f"metric {name!r}: unknown; choose of {', '.join(METRICS)}")
        for text in self.group:
            name, equals, runs = text.partition("=")
            if not (name and equals and all(runs.split(","))):
                raise ValueError(
                    f"group {text!r}: give NAME=RUN or NAME=RUN,RUN with the folder or the id of "
                    "each run"
                )

    @property
    def groups(self) -> list[tuple[str, list[str]]]:
        """Return the name and the runs of each group."""
        parts = [text.partition("=") for text in self.group]
        return [(name, runs.split(",")) for name, _, runs in parts]


PRESETS = {"default": ConvergenceConfig()}
