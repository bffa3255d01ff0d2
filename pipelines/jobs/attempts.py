"""Notes of workers on what they are doing, from which the next attempt learns what killed the last.

An image can kill the process that decodes it: a fault in a codec, or memory. No exception is left
to catch, and whoever repeats the unit of work dies of it too. So a worker leaves a note when it
begins a unit and removes it when it ends, by a result or by an exception. A note that is still
there says that its process died. The unit is then done item by item, each noted before it is
begun; an item that has killed `LIMIT` processes is given up, and the rest of the unit goes on.

Only deaths that the job itself survived count against an item: whoever kills a whole job, by hand
or by the power switch, strikes whatever happens to be under way.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infra.config import pretty_json
from infra.errors import UserError
from infra.paths import AnyPath, read_if_there, write_bytes

LIMIT = 2
"""Deaths in which an item was the only one under way, after which it is given up."""
UNEXPLAINED = 3
"""Deaths between the items of a unit, after which the job ends: no item is to blame."""


class Attempt:
    """One attempt at a unit, made by `attempt`.

    Args:
        path: of the note.
        session: name of the job that is running, another at every start of it.
        what: the unit, for the message.
    """

    def __init__(self, path: AnyPath, session: str, what: str) -> None:
        left = read_if_there(path)
        before = json.loads(left) if left else {}
        self._path, self._what = path, what
        self._note: dict[str, Any] = {
            "session": session,
            "item": None,
            "deaths": before.get("deaths", {}),
            "unexplained": 0,
        }
        self.is_careful = bool(before)
        """Whether an earlier attempt died, so that items are to be done one by one."""
        if before.get("session") == session:
            self._note["unexplained"] = before["unexplained"]
            self._blame(before["item"], is_first=not before["is_careful"])
        self._note["is_careful"] = self.is_careful
        self._write()

    def _blame(self, item: str | None, *, is_first: bool) -> None:
        if item is not None:
            self._note["deaths"][item] = self._note["deaths"].get(item, 0) + 1
        elif not is_first:
            self._note["unexplained"] += 1
        if self._note["unexplained"] >= UNEXPLAINED:
            self._path.unlink()
            raise UserError(
                f"workers were killed again and again in {self._what}, and no image is to "
                "blame; usually memory has run out: give fewer --workers and run the same command "
                "again to resume"
            )

    def has_killed(self, item: str) -> bool:
        """Tell whether an item has killed so many processes that it is given up."""
        deaths: int = self._note["deaths"].get(item, 0)
        return deaths >= LIMIT

    @contextmanager
    def doing(self, item: str) -> Iterator[None]:
        """Note that an item is under way while the block lasts; in a first attempt do nothing."""
        if not self.is_careful:
            yield
            return
        self._note["item"] = item
        self._write()
        yield
        self._note["item"] = None
        self._write()

    def _write(self) -> None:
        write_bytes(self._path, pretty_json(self._note))


@contextmanager
def attempt(folder: AnyPath, unit: str, session: str, what: str = "") -> Iterator[Attempt]:
    """Do a unit inside this block; only the death of the process leaves its note behind.

    Args:
        folder: of the notes.
        unit: name of the unit.
        session: name of the job that is running.
        what: the unit, for the message; by default its name.

    Raises:
        UserError: processes keep dying in this unit while no item is under way.
    """
    path = folder / f"{unit}.json"
    begun = Attempt(path, session, what or f"unit {unit}")
    try:
        yield begun
    finally:
        path.unlink(missing_ok=True)
