"""What the loop does around a validation: whether it is done, a bar while it runs, its numbers."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from infra.distributed import by_first, rank
from infra.tracking.record import LOG, described, read
from models.metrics.catalog import METRICS
from trainers.loop.checkpoints import Checkpoint, Checkpoints

if TYPE_CHECKING:
    from rich.progress import TaskID


def validated_already(checkpoints: Checkpoints, before: Checkpoint | None, run: Path) -> int | None:
    """Return the step of a checkpoint if its validation is done; all ranks call it.

    A kill may have come after the numbers were logged and before the checkpoint had them: it gets
    them now.

    Args:
        checkpoints: of the run.
        before: the checkpoint that the run goes on from.
        run: folder of the run.
    """
    if before is None:
        return None
    metrics = by_first(lambda: before.metrics)
    if not metrics and checkpoints.is_own(before):
        metrics = by_first(lambda: _logged(run / LOG, before))
        if metrics:
            checkpoints.rate(before.step, metrics)
    return before.step if metrics else None


def _logged(log: Path, before: Checkpoint) -> dict[str, float]:
    """Return what the log of the same run says of the validation of a checkpoint's step."""
    if described(log).get("token") != before.record["token"]:
        return {}
    lines = [line for line, _ in read(log) if line.get("step") == before.step]
    values = {name: value for line in lines for name, value in line.items()}
    return {
        name.removeprefix("val/"): value
        for name, value in values.items()
        if name.startswith("val/")
    }


def readable(metrics: Mapping[str, float], best: str) -> str:
    """Lay out numbers in lines: a name, its value, which way is better, and what belongs to it.

    What belongs to a metric has its name and a suffix, such as `psnr_lq`, the PSNR of the input.

    Args:
        metrics: by name.
        best: as in `trainers.loop.task.Task`; the line of that metric is marked.
    """
    heads = [name for name in metrics if not any(name.startswith(f"{one}_") for one in metrics)]
    width = max(map(len, heads)) + 2
    lines = [f"  {'':{width}}  {'value':>8}  better"]
    for head in heads:
        mark = " *" if head == best.removeprefix("-") else ""
        first = f"  {head + mark:{width}}  {metrics[head]:8.4g}  {_better(head):6}"
        lines.append(f"{first}  {_below(head, metrics)}".rstrip())
    return "\n".join(lines) + "\n"


def _below(head: str, metrics: Mapping[str, float]) -> str:
    """List what belongs to a metric, without its name."""
    begin = f"{head}_"
    return ", ".join(
        f"{name.removeprefix(begin)} {value:.4g}"
        for name, value in metrics.items()
        if name.startswith(begin)
    )


def _better(name: str) -> str:
    """Say which values of a metric are better; of what is no measure of quality, nothing."""
    if name in METRICS:
        return "higher" if METRICS[name].higher_is_better else "lower"
    return "lower" if name == "loss" else ""


class Bar:
    """A progress bar of a validation, on rank 0's terminal only.

    Args:
        title: what stands before it.
    """

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._title = title
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            console=console, transient=True, disable=rank() > 0 or not console.is_terminal
        )

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def show(self, what: str, number: int, count: int) -> None:
        """Show that ``number`` of ``count`` batches are done of ``what``."""
        if what not in self._tasks:
            name = f"{self._title}: validation, {what}"
            self._tasks[what] = self._progress.add_task(name, total=count)
        self._progress.update(self._tasks[what], completed=number)
