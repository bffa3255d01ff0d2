"""Where a step makes the host wait for its device, counted on a CPU, which nobody waits for."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from models.transfer import sent
from trainers.loop.run import Training
from trainers.loop.transfer import asked_for

if TYPE_CHECKING:
    from tests.support.trainers_here import Train

pytest_plugins = ["tests.support.trainers_here"]
READ = {torch.Tensor.tolist, torch.Tensor.cpu}  # others end in an operation
DEPENDENT = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2")
"""Operations whose results a host needs before it can go on."""


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what a host has to wait for if the tensors are on a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        name = func.overloadpacket.__name__
        if name in DEPENDENT:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Counts copies to Python, which for tensors of a CPU are no operation."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function."""
        if func in READ:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """What each step of a run waits for, which updates as on CUDA."""
    found: list[Counter[str]] = []
    update, adam = Training.update, torch.optim.AdamW.__init__

    def counted(training: Training, *arguments: Any) -> None:
        with Waits() as waits, Reads(waits.found):
            update(training, *arguments)
        found.append(waits.found)

    def fused(optimizer: torch.optim.AdamW, *arguments: Any, **values: Any) -> None:
        adam(optimizer, *arguments, **{**values, "fused": True})

    monkeypatch.setattr(Training, "update", counted)
    monkeypatch.setattr(torch.optim.AdamW, "__init__", fused)
    return found


@pytest.mark.parametrize(
    ("layout", "of_deepspeed"),
    [
        ("--zero-stage 0", {}),
        ("--zero-stage 0 --micro-batch-size 2 --precision bf16", {}),
        pytest.param("--zero-stage 1", {"_local_scalar_dense": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_step_reads_its_numbers_at_once(
    command: list[str | Path],
    train: "Train",
    tmp_path: Path,
    steps: list[Counter[str]],
    layout: str,
    of_deepspeed: dict[str, int],
) -> None:
    """Loss, norm and what ranks were told come in one copy; DeepSpeed looks at the norm itself."""
    options = ["--max-steps", "4", "--validate-every", "0", *layout.split()]
    ended = train([*command, *options], tmp_path / "run")
    assert ended.code == 0, ended.said

    assert steps == [{"tolist": 1, **of_deepspeed}] * 4


def test_numbers_are_those_of_the_moment_they_were_asked_for() -> None:
    """What is sent and asked for comes as it was."""
    values = sent(torch.tensor([1.0, 2.5], dtype=torch.float64), torch.device("cpu"))

    assert asked_for(values)() == [1.0, 2.5]


@pytest.mark.gpu
def test_sending_and_asking_do_not_wait_for_cuda() -> None:
    """PyTorch itself finds no synchronisation before the numbers are read."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = sent(torch.tensor([1.0, 2.5], dtype=torch.float64), torch.device("cuda"))
        read = asked_for(values * 2)
        values.zero_()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert read() == [2.0, 5.0]
