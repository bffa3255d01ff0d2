"""The progress bar of a stage, which also counts what is done in units that are under way."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from infra.errors import UserError
from infra.paths import AnyPath, glob, write_bytes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Watched:
    """The items of a stage, and where its workers note what is done of units under way."""

    total: int
    """Number of items."""
    folder: AnyPath
    """Folder of the files that the units write, by `tallied`."""


POLLED = 1.0  # seconds between two looks at what is under way
NOTED = 1.0  # seconds between two notes of a unit: in a bucket each is a request
TALLY = ".tally"


def tallied(path: AnyPath, items: Iterable[T]) -> Iterator[T]:
    """Yield the items of a unit that writes ``path``, and note how many were taken for `under_way`.

    The note is beside the file, written once in a while (`NOTED`) and gone at the end; a unit that
    is done again writes it anew.
    """
    note = path.with_name(f".{path.name}{TALLY}")
    noted = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - noted >= NOTED:
            write_bytes(note, str(number).encode())
            noted = time.monotonic()
    note.unlink(missing_ok=True)


def under_way(folder: AnyPath) -> int:
    """Count the items that the units under way in a folder have done so far."""
    count = 0
    for note in glob(folder, f".*{TALLY}"):
        try:
            count += int(note.read_text() or 0)  # empty while it is written
        except FileNotFoundError:  # the unit has just ended
            continue
    return count


def rate_and_left(done: float, total: float, elapsed: float) -> str:
    """Say the rate of a stage since it began, and how long the rest takes at that rate."""
    if not done or not elapsed:
        return ""
    minutes, seconds = divmod(round((total - done) * elapsed / done), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{done / elapsed:.3g}/s  left {hours}:{minutes:02}:{seconds:02}"


@contextmanager
def progress(name: str, items: int | Watched) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with rate and time left, on terminals only; yields what advances it.

    Args:
        name: of the stage.
        items: their number; `Watched`, if they are to be counted before a unit ends.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(rate_and_left(task.completed, task.total or 0, task.elapsed or 0))

    console, done, shown = Console(stderr=True), 0, 0
    total, folder = (items, None) if isinstance(items, int) else (items.total, items.folder)
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        Rate(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, ended = bar.add_task(name, total=total), threading.Event()

        def show(unfinished: int) -> None:
            nonlocal shown
            shown = max(shown, min(total, done + unfinished))  # a unit that died is done again
            bar.update(task, completed=shown)

        def look() -> None:
            while folder is not None and not ended.wait(POLLED):
                with suppress(UserError):  # a bucket that is away: the workers say so
                    show(under_way(folder))

        def advance(count: int) -> None:
            nonlocal done
            done += count
            show(0)

        looking = threading.Thread(target=look, name="progress", daemon=True)
        if console.is_terminal:
            looking.start()
        try:
            yield advance
        finally:
            ended.set()
            if looking.ident is not None:
                looking.join()
