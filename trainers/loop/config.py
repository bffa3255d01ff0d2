"""What every trainer is configured by, besides what it trains."""

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from infra.config import STRICT
from infra.distributed import local_rank
from infra.errors import UsageError
from infra.notices import OnUsr1

if TYPE_CHECKING:
    from models.ema import EMAConfig
    from models.schedules import Schedule

Precision = Literal["fp32", "bf16"]
Decay = Annotated[float, Field(ge=0, lt=1)]
FIXED = ("loop.seed", "engine.global_batch_size", "engine.precision", "engine.gradient_clipping")


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class LoopConfig:
    """How long, how often, where; none of it but the seed changes what is learnt."""

    output: str = ""
    """Folder of the run, local or s3://BUCKET/RUN: checkpoints, log, pictures."""
    work: str = ""
    """Folder on a disk of each machine in which a run in a bucket is worked on before it is copied
    there; by default one below ~/.cache/latent-pmrf ($XDG_CACHE_HOME), by the name of the run."""
    max_steps: PositiveInt = 150_000
    """Updates."""
    log_every: PositiveInt = 50
    """Steps from one line of the log to the next."""
    validate_every: NonNegativeInt = 5_000
    """Steps from one validation to the next; there is one at the start and at the end. 0: none."""
    validate_limit: PositiveInt | None = 500
    """Held-out samples of each set that a validation takes, spread over the set; None: all."""
    save_every: PositiveInt = 5_000
    """Steps from one checkpoint to the next; there is one at the end, and when told to end."""
    keep_last: PositiveInt = 2
    """Newest checkpoints that stay."""
    keep_best: NonNegativeInt = 1
    """Best checkpoints that stay besides; a checkpoint is rated if its step was validated."""
    best: str | None = None
    """Metric of the validation that says which are best, such as lpips or psnr; None: the trainer's
    choice, which it prints."""
    on_usr1: OnUsr1 = "save"
    """What SIGUSR1 asks for: ``save`` and go on, or ``end`` with a checkpoint, as SIGTERM does."""
    resume: str = "auto"
    """"auto": from the newest whole checkpoint of the output folder; "never"; or the folder of a
    checkpoint, or of a run, local or in a bucket: of another run it is forked."""
    init_from: str = ""
    """Weights to begin with at step 0, for fine-tuning: a run (its averaged weights), a checkpoint,
    a folder or file of weights, local or in a bucket, or a repository of the Hugging Face hub."""
    seed: NonNegativeInt = 0
    """Of the initial weights, the order of samples, crops, times and noise."""
    workers: NonNegativeInt = 2
    """Threads or processes that read ahead; 0: each batch is read when it is asked for."""
    cache: str = ""
    """Folder on a local disk that keeps what is read of sets on slow storage."""
    cache_gb: PositiveFloat = 100.0
    """What that folder may hold, in 1e9 bytes; what was not read for longest goes first."""
    skip_budget: NonNegativeInt = 0
    """Unreadable samples that each rank may skip, from its start, before it stops; each is named,
    and MLflow counts them as data/skipped."""
    check_data: bool = False
    """Compare every latent that is read with its checksum, to notice bits that changed on the disk:
    0.2 ms of a processor for a pair of 2 x 256 KiB. Images are always compared."""
    dry_run: bool = False
    """Only say what the run would cost: operations, memory, hours, files; nothing is written."""
    track: bool = True
    """Log the run to MLflow (MLFLOW_TRACKING_URI, by default sqlite:///mlflow.db)."""
    timeout_minutes: PositiveFloat = 30.0
    """A rank whose step, save, or batch of a validation takes longer prints where it hangs and ends
    the job."""
    local_rank: int = -1
    """Passed by the deepspeed launcher; LOCAL_RANK is what is read."""

    def __post_init__(self) -> None:
        if self.best and not self.validate_every:
            raise ValueError(
                f"best={self.best!r} with validate_every=0: without a validation no checkpoint has "
                "a metric; leave --best out, or validate"
            )
        if self.local_rank not in (-1, local_rank()):
            raise UsageError(
                f"--local_rank={self.local_rank}, but LOCAL_RANK={local_rank()}: start with "
                "deepspeed or torchrun, which set both, and leave the option out"
            )


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class OptimizerConfig:
    """Adam, with decoupled weight decay where there is any."""

    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """Decay of the moments."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled, as AdamW has it; 0 is Adam."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class EngineConfig:
    """How a step is computed; none of it but the precision and the clipping changes what it is."""

    global_batch_size: PositiveInt = 64
    """Samples of one update, over all ranks."""
    micro_batch_size: PositiveInt | None = None
    """Samples of one forward pass of one rank; None: the rank's whole share, no accumulation."""
    precision: Precision = "fp32"
    """``bf16`` is autocast over float32 weights."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """What ranks share out: 0 nothing, 1 optimiser state, 2 and gradients, 3 and weights. None: 0
    for one rank, which has nobody to share with, and 1 for several."""
    gradient_clipping: NonNegativeFloat = 1.0
    """Largest global norm of a gradient; 0 clips nothing."""
    compile: bool | None = None
    """Compile by torch.compile each block of the networks that a step runs; None: on CUDA, yes, and
    on CPUs, no."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: a third more work, far less memory."""
    deepspeed_config: str | None = None
    """A JSON file of DeepSpeed's; what follows from this configuration is filled in."""

    def stage(self, ranks: int) -> int:
        """Return the ZeRO stage of a job of so many ranks."""
        return min(ranks - 1, 1) if self.zero_stage is None else self.zero_stage

    def compiles(self, device: str) -> bool:
        """Tell whether blocks are compiled on a type of device, such as ``cuda``."""
        return device == "cuda" if self.compile is None else self.compile


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class ChangesConfig:
    """What is otherwise from some step on; what lies before a checkpoint's step stays as it was."""

    peak_from: tuple[tuple[NonNegativeInt, PositiveFloat], ...] = ()
    """STEP PEAK, and more such pairs: from this step on the schedule has this peak."""
    clipping_from: tuple[tuple[NonNegativeInt, NonNegativeFloat], ...] = ()
    """STEP NORM, and more such pairs: from this step on gradients are clipped to this norm."""
    skip_steps: tuple[NonNegativeInt, ...] = ()
    """Steps whose batch is read and left out."""
    skip_non_finite: NonNegativeInt = 0
    """Steps that may be left out because their loss or gradient is not finite; each is named, and
    the log counts them as train/skipped_steps."""

    def __post_init__(self) -> None:
        for name in ("peak_from", "clipping_from"):
            steps = [step for step, _ in getattr(self, name)]
            if any(one >= other for one, other in pairwise(steps)):
                raise ValueError(f"{name}={getattr(self, name)}: give each step once, in order")


class TrainerConfig(Protocol):
    """A trainer's configuration, as far as the loop reads it."""

    @property
    def loop(self) -> LoopConfig:
        """How long, how often, where."""

    @property
    def engine(self) -> EngineConfig:
        """How a step is computed."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """Adam's settings."""

    @property
    def schedule(self) -> "Schedule":
        """Learning rate by step."""

    @property
    def ema(self) -> "EMAConfig":
        """Averages of the weights."""

    @property
    def changes(self) -> ChangesConfig:
        """What is otherwise from some step on."""

    def may_change(self, name: str) -> bool:
        """Tell whether a run may be resumed with another value of this dotted field."""


def may_change(name: str) -> bool:
    """Tell whether a field of the loop or the engine may differ when a run is resumed."""
    if name == "changes.skip_non_finite":
        return True
    return name.startswith(("loop.", "engine.")) and name not in FIXED
