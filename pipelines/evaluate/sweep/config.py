"""What `python -m pipelines.evaluate sweep` is told."""

from dataclasses import field, replace
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from tyro.conf import arg

from infra.config import STRICT
from pipelines.evaluate.config import EvaluateConfig, InputConfig, MeasureConfig, SetsConfig
from pipelines.jobs.paths import absolute, absolute_if_there
from pipelines.restore.config import ModelRule, Precision, Solver, refuse_tf32


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class SweepConfig:
    """In which ways `python -m pipelines.evaluate sweep` restores, and what is evaluated."""

    output: Annotated[str, arg(aliases=["-o"])] = ""
    """Folder of the tables and the pages; made if it is not there."""
    model: str = ""
    """A bundle or the folder of a training run, a path or s3://; or a hub id."""
    steps: tuple[PositiveInt, ...] = (1, 2, 4, 8, 25)
    """Of the solver."""
    solver: tuple[Solver, ...] = ("euler",)
    """Heun's method evaluates the network twice in a step."""
    sigma_s: tuple[NonNegativeFloat, ...] = ()
    """Standard deviations of the source's noise; by default that of the training."""
    strength: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0,)
    """How far the flow may go from the posterior mean, to what it was trained for, 1."""
    seed: int = 0
    """Of the noise, which is a function of (seed, key)."""
    precision: Precision = "float32"
    """Of the networks, as of `pipelines.restore`."""
    sets: SetsConfig = field(default_factory=SetsConfig)
    """The pictures."""
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    """The metrics."""
    given: InputConfig = field(default_factory=InputConfig)
    """What --model restores."""

    def __post_init__(self) -> None:
        for name in ("steps", "solver", "strength"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: give at least one value")
        refuse_tf32(self.precision, self.measure.device)

    @property
    def evaluation(self) -> EvaluateConfig:
        """The evaluation of the model, in no particular way."""
        rule = ModelRule(model=self.model, seed=self.seed, precision=self.precision)
        return EvaluateConfig(
            output=self.output, sets=self.sets, measure=self.measure, given=self.given, rule=rule
        )

    def absolute(self) -> "SweepConfig":
        """Return the same job with every path absolute, for processes that work elsewhere."""
        return replace(
            self,
            output=absolute(self.output),
            model=absolute_if_there(self.model),
            sets=self.sets.absolute(),
            measure=self.measure.absolute(),
            given=self.given.absolute(),
        )


PRESETS = {"default": SweepConfig()}
