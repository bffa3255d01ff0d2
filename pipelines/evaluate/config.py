"""What `python -m pipelines.evaluate` is told; light, so that a command line is checked quickly."""

from dataclasses import field, replace
from typing import Annotated, Final, Literal

from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from tyro.conf import arg

from datasets.degradation.parameters import PRESETS as DEGRADATIONS
from datasets.degradation.parameters import degradation_preset
from datasets.test_sets import PROTOCOLS
from infra.cli import choices
from infra.config import STRICT
from models.metrics.catalog import METRICS
from pipelines.jobs.paths import absolute, absolute_if_there
from pipelines.restore.config import ModelRule, refuse_execution, refuse_tf32

STATE = ".evaluate"
"""Folder of an output with the state of its job."""
POSTERIOR_MEAN: Final = "posterior-mean"
"""The method that stands for a model's posterior mean."""


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class SetsConfig:
    """Which pictures are compared with which."""

    restored: tuple[str, ...] = ()
    """NAME=FOLDER of each method's pictures, which have the keys of the reference."""
    reference: str = ""
    """Folder of the HQ pictures; in a protocol without HQ, of those that a set is compared with."""
    protocol: Annotated[str, choices(*PROTOCOLS)] = "custom"
    """The test set: whether it has HQ pictures, and how many pictures it is known to have."""
    distribution: str = ""
    """What whole sets are compared with: a folder, or a file .npz of statistics; by default
    --reference."""
    posterior_mean: str = ""
    """Folder of the predictor's posterior means, for indrmse."""
    lq: str = ""
    """Folder of the LQ pictures, which the page shows beside the others."""
    degradations: str = ""
    """Table (.parquet, .csv) with a row for each key and a column for each parameter of its
    degradation, for values by severity."""
    common: bool = False
    """Evaluate the keys that all folders have, and say how many are left out."""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(
                f"protocol {self.protocol!r}: unknown; choose one of {', '.join(PROTOCOLS)}"
            )

    def absolute(self) -> "SetsConfig":
        """Return the same with every path absolute."""
        return replace(
            self,
            restored=tuple(map(absolute_if_there, self.restored)),
            reference=absolute(self.reference),
            distribution=absolute(self.distribution),
            posterior_mean=absolute(self.posterior_mean),
            lq=absolute(self.lq),
            degradations=absolute(self.degradations),
        )


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class MeasureConfig:
    """What is measured, where and how often."""

    metrics: Annotated[tuple[str, ...], choices(*METRICS)] = ()
    """By default all for which there are pictures and weights."""
    weights: str = ""
    """Folder of the metrics' weights; those of METRIC may lie in FOLDER/METRIC. By default the
    caches of torch.hub and of the Hugging Face hub. Nothing is downloaded."""
    bootstrap: PositiveInt = 1000
    """Resamples of the images for each interval of 95 %."""
    set_bootstrap: NonNegativeInt = 0
    """Resamples for the intervals of distances of whole sets, each of which takes seconds."""
    device: Literal["cuda", "cpu"] | None = None
    """None: a GPU where the Ray cluster has one, which the first line says."""
    batch: PositiveInt | None = None
    """Pictures in a pass on a GPU, by default 8; on a CPU a pass is one picture."""
    threads: PositiveInt = 1
    """Of a worker on CPUs."""
    gpus: PositiveInt | None = None
    """GPUs, one worker each; by default all of the Ray cluster."""
    workers: PositiveInt | None = None
    """Workers on CPUs; by default as many as the Ray cluster has CPUs for."""
    track: bool = True
    """Record the evaluation in MLflow."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown:
            raise ValueError(f"metrics {unknown[0]!r}: unknown; choose of {', '.join(METRICS)}")

    def absolute(self) -> "MeasureConfig":
        """Return the same with every path absolute."""
        return replace(self, weights=absolute(self.weights))


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class InputConfig:
    """What a model restores before its pictures are measured."""

    input: Annotated[str, arg(aliases=["-i"])] = ""
    """Folder or archive of LQ pictures, whose HQ pictures are --reference; or an image set of
    pipelines.curate, whose images are degraded."""
    split: Literal["train", "val"] = "val"
    """Of the image set."""
    limit: PositiveInt | None = None
    """Take only the first N images of the image set."""
    degradation: Annotated[str | None, choices("None", *DEGRADATIONS)] = None
    """What makes LQ of the image set's HQ; None: what the model was trained to undo."""
    degradation_seed: int = 0
    """Of the degradations, each of which is a function of (seed, key)."""
    overwrite: bool = False
    """Make anew what another configuration has degraded or restored in the output folder."""

    def __post_init__(self) -> None:
        if self.degradation is not None:
            degradation_preset(self.degradation)

    def absolute(self) -> "InputConfig":
        """Return the same with every path absolute."""
        return replace(self, input=absolute(self.input))


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class EvaluateConfig:
    """Which pictures to compare with which, by what, into what."""

    output: Annotated[str, arg(aliases=["-o"])] = ""
    """Folder of the tables and the page; made if it is not there."""
    sets: SetsConfig = field(default_factory=SetsConfig)
    """The pictures."""
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    """The metrics."""
    given: InputConfig = field(default_factory=InputConfig)
    """What --model restores."""
    rule: ModelRule = field(default_factory=ModelRule)
    """With what, and how."""
    name: str = ""
    """Of the method that --model is; by default latent-pmrf, pmrf, or what --method says."""
    dry_run: bool = False
    """Measure the first pictures, say how long all of them take, and write nothing."""

    def __post_init__(self) -> None:
        if self.name.startswith(".") or set("/=") & set(self.name):
            raise ValueError(f"name {self.name!r}: a folder has it; give it no / or =, no . first")
        if self.name == POSTERIOR_MEAN and self.rule.method != POSTERIOR_MEAN:
            raise ValueError(f"name {self.name!r}: the model's posterior mean has it; give another")
        refuse_tf32(self.rule.precision, self.measure.device)
        refuse_execution(self.rule.execution, self.measure.device)

    def absolute(self) -> "EvaluateConfig":
        """Return the same job with every path absolute, for processes that work elsewhere."""
        return replace(
            self,
            output=absolute(self.output),
            sets=self.sets.absolute(),
            measure=self.measure.absolute(),
            given=self.given.absolute(),
            rule=replace(self.rule, model=absolute_if_there(self.rule.model)),
        )


PRESETS = {"default": EvaluateConfig()}
