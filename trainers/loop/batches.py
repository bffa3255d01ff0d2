"""The division of a global batch among the ranks, and DeepSpeed's configuration for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.config import read_object
from infra.errors import UsageError
from infra.paths import path_of
from trainers.loop.config import EngineConfig

OURS = ("optimizer", "scheduler", "fp16", "bf16", "amp", "data_types", "checkpoint")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """The division of a global batch: ranks x micro-batch x accumulation steps."""

    ranks: int
    """Number of processes."""
    micro_batch_size: int
    """Samples in one forward pass of a rank."""
    accumulation_steps: int
    """Forward passes of a rank for each update."""

    @property
    def global_batch_size(self) -> int:
        """Samples of all ranks for each update."""
        return self.ranks * self.micro_batch_size * self.accumulation_steps

    def __str__(self) -> str:
        return (
            f"batch of {self.global_batch_size} = {self.ranks} ranks x {self.micro_batch_size} "
            f"samples x {self.accumulation_steps} accumulation steps"
        )


def plan_batches(config: EngineConfig, ranks: int) -> BatchPlan:
    """Divide the global batch among the ranks.

    Raises:
        UsageError: it cannot be divided equally.
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
    given = {} if file is None else read_object(path_of(file), file)
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
        "zero_optimization": {"stage": config.stage(plan.ranks)},
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
