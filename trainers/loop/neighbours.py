"""Which ranks see the same folder: all of one machine, and those of several that mount one."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from infra.distributed import barrier, gathered, rank, together, world_size

T = TypeVar("T")


class Neighbours(NamedTuple):
    """The ranks that see this rank's folder, in order, this one among them."""

    ranks: tuple[int, ...]

    @property
    def is_first(self) -> bool:
        """Whether this rank does what has to be done once in the folder."""
        return rank() == self.ranks[0]

    @property
    def is_everyone(self) -> bool:
        """Whether all ranks of the job see the folder."""
        return len(self.ranks) == world_size()

    def share(self, things: Sequence[T]) -> list[T]:
        """Return the things that are this rank's to do; its neighbours do the others."""
        return list(things[self.ranks.index(rank()) :: len(self.ranks)])


def everyone() -> Neighbours:
    """Return all ranks: of a folder that all of them see."""
    return Neighbours(tuple(range(world_size())))


def neighbours(folder: Path) -> Neighbours:
    """Find out who sees a folder: each rank leaves a file there and looks for the others'.

    Names of hosts would not tell: machines may mount one folder, and containers may share a name.
    All ranks call it.
    """
    attempt = gathered(secrets.token_hex(8))[0]  # of another attempt, files may be left

    def mark(number: int) -> Path:
        return folder / f".rank-{number}-of-{attempt}"

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        mark(rank()).touch()

    together(write)
    seen = Neighbours(tuple(number for number in range(world_size()) if mark(number).exists()))
    barrier()
    mark(rank()).unlink()
    return seen


def assigned(names: Sequence[str], seen: Sequence[Sequence[str]]) -> dict[str, int]:
    """Share files out among the ranks that see them.

    Args:
        names: of the files.
        seen: the names that each rank sees.

    Returns:
        The rank of each name that somebody sees.
    """
    views = [frozenset(mine) for mine in seen]
    holders = {name: [n for n, view in enumerate(views) if name in view] for name in names}
    return {
        name: ranks[number % len(ranks)]
        for number, (name, ranks) in enumerate(holders.items())
        if ranks
    }
