"""What every trainer is configured by, besides what it trains."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from infra.distributed import local_rank
from infra.errors import UsageError

if TYPE_CHECKING:
    from models.ema import EMAConfig
    from models.schedules import Schedule

Precision = Literal["fp32", "bf16"]
FIXED = ("loop.seed", "engine.global_batch_size", "engine.precision", "engine.gradient_clipping")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long, how often, where; none of it but the seed changes what is learnt."""

    output: str = ""
    """Folder of the run: checkpoints, log, pictures."""
    max_steps: int = 150_000
    """Updates."""
    log_every: int = 50
    """Steps from one line of the log to the next."""
    validate_every: int = 5_000
    """Steps from one validation to the next; there is one at the start and at the end."""
    save_every: int = 5_000
    """Steps from one checkpoint to the next; there is one at the end and at SIGTERM."""
    keep_last: int = 2
    """Newest checkpoints that stay."""
    keep_best: int = 1
    """Best checkpoints that stay besides; a checkpoint is rated if its step was validated."""
    resume: str = "auto"
    """"auto": from the newest complete checkpoint of the output folder; "never"; or a folder."""
    seed: int = 0
    """Of the initial weights, the order of samples, crops, times and noise."""
    workers: int = 2
    """Threads or processes that read ahead; 0: each batch is read when it is asked for."""
    cache: str = ""
    """Folder on a local disk that keeps what is read of sets on slow storage."""
    cache_gb: float = 100.0
    """What that folder may hold, in 1e9 bytes; what was not read for longest goes first."""
    skip_budget: int = 0
    """Unreadable samples that each rank may skip, from its start, before it stops; each is named,
    and MLflow counts them as data/skipped."""
    track: bool = True
    """Log the run to MLflow (MLFLOW_TRACKING_URI, by default sqlite:///mlflow.db)."""
    timeout_minutes: float = 30.0
    """A rank whose step, validation or save takes longer prints where it hangs and ends the job."""
    local_rank: int = -1
    """Passed by the deepspeed launcher; LOCAL_RANK is what is read."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "log_every", "validate_every", "save_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")
        for name in ("keep_best", "seed", "workers", "skip_budget"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: 0 or more")
        for name in ("timeout_minutes", "cache_gb"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: a positive number")
        if self.local_rank not in (-1, local_rank()):
            raise UsageError(
                f"--local_rank={self.local_rank}, but LOCAL_RANK={local_rank()}: start with "
                "deepspeed or torchrun, which set both, and leave the option out"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Adam, with decoupled weight decay where there is any."""

    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the moments."""
    weight_decay: float = 0.01
    """Decoupled, as AdamW has it; 0 is Adam."""
    eps: float = 1e-8
    """Added to the root of the second moment."""

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: each in [0, 1)")
        if not self.weight_decay >= 0 or not self.eps > 0:
            raise ValueError(
                f"weight_decay={self.weight_decay}, eps={self.eps}: 0 or more, and positive"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """How a step is computed; none of it but the precision and the clipping changes what it is."""

    global_batch_size: int = 64
    """Samples of one update, over all ranks."""
    micro_batch_size: int | None = None
    """Samples of one forward pass of one rank; None: the rank's whole share, no accumulation."""
    precision: Precision = "fp32"
    """``bf16`` is autocast over float32 weights."""
    zero_stage: int = 1
    """What ranks share out: 0 nothing, 1 optimiser state, 2 and gradients, 3 and weights."""
    gradient_clipping: float = 1.0
    """Largest global norm of a gradient; 0 clips nothing."""
    compile: bool = False
    """Compile the model with torch.compile."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: a third more work, far less memory."""
    deepspeed_config: str | None = None
    """A JSON file of DeepSpeed's; what follows from this configuration is filled in."""

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision={self.precision!r}: choose one of {get_args(Precision)}")
        if self.zero_stage not in range(4):
            raise ValueError(f"zero_stage={self.zero_stage}: choose 0, 1, 2 or 3")
        if not 0 <= self.gradient_clipping < float("inf"):
            raise ValueError(f"gradient_clipping={self.gradient_clipping}: 0 or a positive norm")
        for name in ("global_batch_size", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: at least 1")


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

    def may_change(self, name: str) -> bool:
        """Tell whether a run may be resumed with another value of this dotted field."""


def may_change(name: str) -> bool:
    """Tell whether a field of the loop or the engine may differ when a run is resumed."""
    return name.startswith(("loop.", "engine.")) and name not in FIXED
