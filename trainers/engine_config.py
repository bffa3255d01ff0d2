"""How a step is computed and shared out: the engine's configuration, and DeepSpeed's from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from infra.config import read_object
from infra.errors import UsageError

Precision = Literal["fp32", "bf16"]
OURS = ("optimizer", "scheduler", "fp16", "bf16", "amp", "data_types", "checkpoint")


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


PRESETS = {"default": EngineConfig()}


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """How a global batch is shared: ranks x micro-batch x accumulation steps."""

    ranks: int
    """Processes."""
    micro_batch_size: int
    """Samples of one rank's forward pass."""
    accumulation_steps: int
    """Forward passes of a rank before an update."""

    @property
    def global_batch_size(self) -> int:
        """Samples of one update."""
        return self.ranks * self.micro_batch_size * self.accumulation_steps

    def __str__(self) -> str:
        return (
            f"batch of {self.global_batch_size} = {self.ranks} ranks x {self.micro_batch_size} "
            f"samples x {self.accumulation_steps} accumulation steps"
        )


def plan_batches(config: EngineConfig, ranks: int) -> BatchPlan:
    """Share the global batch out.

    Raises:
        UsageError: it cannot be shared equally.
    """
    total, micro = config.global_batch_size, config.micro_batch_size
    if micro is None and total % ranks == 0:
        micro = total // ranks
    if micro is None or total % (ranks * micro):
        raise UsageError(
            f"global_batch_size={total} is not a multiple of {ranks} ranks x "
            f"micro_batch_size={micro}: choose sizes that divide"
        )
    return BatchPlan(
        ranks=ranks, micro_batch_size=micro, accumulation_steps=total // (ranks * micro)
    )


def deepspeed_json(config: EngineConfig, plan: BatchPlan) -> dict[str, Any]:
    """Return DeepSpeed's configuration: the user's file, completed.

    Raises:
        UsageError: the file contradicts the configuration, or sets what the trainer decides.
    """
    file = config.deepspeed_config
    given = {} if file is None else read_object(Path(file), file)
    for name in OURS:
        if given.pop(name, None) is not None:
            raise UsageError(
                f"{config.deepspeed_config}: {name!r} is the trainer's to decide; remove it, and "
                "use the trainer's own options (--precision bf16 trains in bf16)"
            )
    wanted: dict[str, Any] = {
        "train_batch_size": plan.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "gradient_clipping": config.gradient_clipping,
        "zero_optimization": {"stage": config.zero_stage},
        "torch_autocast": {"enabled": config.precision == "bf16"},
    }
    complete = _merged(given, wanted, str(config.deepspeed_config), "")
    if config.precision == "bf16":  # no module is listed as safe to reduce in bf16
        complete["torch_autocast"] |= {"dtype": "bfloat16", "lower_precision_safe_modules": []}
    return {"steps_per_print": 1 << 60, **complete}


def _merged(
    given: Mapping[str, Any], wanted: Mapping[str, Any], path: str, prefix: str
) -> dict[str, Any]:
    """Fill ``wanted`` into ``given``; absent and "auto" are filled in, anything else must agree."""
    merged = dict(given)
    for name, value in wanted.items():
        there = given.get(name, "auto")
        if isinstance(value, Mapping):
            below = {} if there == "auto" else there
            merged[name] = _merged(below, value, path, f"{prefix}{name}.")
        elif there not in ("auto", value):
            raise UsageError(
                f"{path}: {prefix}{name} is {there!r}, but the trainer's configuration makes it "
                f'{value!r}; remove it from the file, write "auto", or change the option'
            )
        else:
            merged[name] = value
    return merged
