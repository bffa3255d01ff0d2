"""What every trainer is configured by, besides what it trains."""

from dataclasses import dataclass
from typing import Protocol

from infra.distributed import local_rank
from infra.errors import UsageError
from models.ema import EMAConfig
from models.schedules import Schedule
from trainers.engine_config import EngineConfig

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


LOOP_PRESETS = {"default": LoopConfig()}
OPTIMIZER_PRESETS = {"default": OptimizerConfig()}


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
    def schedule(self) -> Schedule:
        """Learning rate by step."""

    @property
    def ema(self) -> EMAConfig:
        """Averages of the weights."""

    def may_change(self, name: str) -> bool:
        """Tell whether a run may be resumed with another value of this dotted field."""


def may_change(name: str) -> bool:
    """Tell whether a field of the loop or the engine may differ when a run is resumed."""
    return name.startswith(("loop.", "engine.")) and name not in FIXED
