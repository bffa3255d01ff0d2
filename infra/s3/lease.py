"""A folder of a bucket held by one process: a lease that other machines see.

The holder writes a record and renews it while it lives. Whoever finds a record asks whether its
holder still renews it, by the server's clock alone: a record that is older than a lease is that of
a dead process. A holder of this machine is asked for directly, so that a job that was killed can be
started again at once.

Records are numbered. That of a dead holder, or of one that has given the folder up, is not replaced
but followed by the next number, written on the condition that nobody has written it, so that of
several that follow one wins. A holder that was only asleep finds the higher number when it wakes,
and ends itself.
"""

import email.utils
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.config import pretty_json
from infra.errors import UserError
from infra.folders.contract import Missing, Taken
from infra.s3.client import call
from infra.s3.errors import UNREACHABLE
from infra.s3.folder import S3Folder
from infra.s3.reading import Object

SECONDS = 60.0
"""How long a record counts without being renewed."""
RENEWED = 15.0
"""Seconds between renewals: three may fail."""
LOOKS = 3.0
"""Seconds between looks at another's record."""


_held_here: set[str] = set()
"""Tokens of the leases of this process."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a folder, as its record says."""

    host: str
    """Name of the machine, for messages."""
    machine: str
    """What tells its processes from those of other machines with the same process ids."""
    pid: int
    started: str
    """Start of the process by the machine's own count: ids are used again."""
    token: str
    """Another one for every lease."""

    @classmethod
    def here(cls) -> "Holder":
        """Describe this process."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, _start(pid), secrets.token_hex(8))

    def is_here(self) -> bool:
        """Tell whether it is or was a process of this machine."""
        return self.machine == _machine()

    def is_dead(self) -> bool:
        """Tell whether it was a process of this machine that is there no more.

        Of what this process itself has held it is known whether it holds it still.
        """
        if not self.is_here():
            return False
        if self.pid == os.getpid() and self.started == _start(self.pid):
            return self.token not in _held_here
        return _start(self.pid) != self.started


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115


def _start(pid: int) -> str:
    """Return when a process started, in ticks of the machine's clock; "" if there is none."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state[0] == "Z" else state[19]


@contextmanager
def held(folder: S3Folder, noun: str) -> Iterator["Lease"]:
    """Hold a folder until the block ends or the process dies.

    Args:
        folder: where the records are; nothing else is in it.
        noun: what is held, for messages.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    me = Holder.here()
    lease = Lease(folder, _taken(folder, me, noun), me, noun)
    renewal = threading.Thread(target=lease.renew, daemon=True)
    _held_here.add(me.token)
    renewal.start()
    is_reachable = True
    try:
        yield lease
    except UserError as error:
        is_reachable = not isinstance(error.__cause__, UNREACHABLE)
        raise
    finally:
        _held_here.remove(me.token)
        lease.done.set()
        if is_reachable:  # else the user would only wait
            renewal.join()
            lease.release()


class Lease:
    """A folder that this process holds.

    Args:
        folder: where the records are.
        number: of the record.
        me: this process.
        noun: what is held, for messages.
    """

    def __init__(self, folder: S3Folder, number: int, me: "Holder", noun: str) -> None:
        self._folder, self._number, self._me, self._noun = folder, number, me, noun
        self._is_lost = False
        self.done = threading.Event()

    def check(self) -> None:
        """Refuse to go on if another process holds the folder now, because this one slept.

        Raises:
            UserError: it does, or the store cannot be asked.
        """
        if _newest(self._folder) > self._number:
            self._is_lost = True
            raise UserError(self._said_lost())

    def _said_lost(self) -> str:
        return (
            f"{self._noun} was taken over by another process, because this one gave no sign of "
            f"life for {SECONDS:g} seconds; this one ends"
        )

    def renew(self) -> None:
        """Renew the record until told to end; end this process if another one holds the folder."""
        renewals = 0
        while not self.done.wait(RENEWED):
            renewals += 1
            with suppress(UserError):  # the store is away: the next renewal may come through
                self.check()
                self._folder.put(_name(self._number), _content(self._me, renewals))
            if self._is_lost:
                sys.stderr.write(f"error: {self._said_lost()}\n")
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def release(self) -> None:
        """Give the folder up; renewals have ended."""
        if not self._is_lost:
            with suppress(UserError):  # a record that stays runs out
                self._folder.put(_name(self._number), _content(self._me, 0, released=True))


def _taken(folder: S3Folder, me: Holder, noun: str) -> int:
    """Write the record of the next number once no living process holds the folder."""
    seen: _Record | None = None
    while True:
        number = _newest(folder)
        found = _Record.read(folder, number) if number else None
        if found is None and number:
            continue  # it was replaced between the two requests
        if found is None or found.is_over():
            if _follows(folder, me, number):
                return number + 1
            continue
        if found.holder.is_here() or (seen is not None and found.differs_from(seen)):
            raise found.refusal(noun)
        if seen is None:
            found.say_waiting(noun)
        seen = found
        time.sleep(LOOKS)


def _follows(folder: S3Folder, me: Holder, number: int) -> bool:
    """Write the record that follows a number, if nobody else does; tells whether it counts."""
    try:
        folder.put(_name(number + 1), _content(me, 0), exclusive=True)
    except Taken:
        return False
    there = _numbers(folder)
    if max(there) > number + 1:  # this process looked so long ago that others came and went
        folder.delete(_name(number + 1))
        return False
    for earlier in there:
        if earlier <= number:
            folder.delete(_name(earlier))
    return True


def _name(number: int) -> str:
    return f"{number:09d}.json"


def _content(me: Holder, renewals: int, *, released: bool = False) -> bytes:
    return pretty_json({"holder": asdict(me), "renewals": renewals, "released": released})


def _newest(folder: S3Folder) -> int:
    """Return the highest number of a record; 0 if there is none."""
    return max(_numbers(folder), default=0)


def _numbers(folder: S3Folder) -> list[int]:
    return [int(entry.name.partition(".")[0]) for entry in folder.list()]


@dataclass(frozen=True, slots=True)
class _Record:
    """What a record says, and how old it is."""

    holder: Holder
    renewals: int
    is_released: bool
    age: float
    """Seconds since it was written, by the server's clock."""

    @classmethod
    def read(cls, folder: S3Folder, number: int) -> "_Record | None":
        """Read the record of a number; None if it is gone."""
        place = Object(folder.bucket, f"{folder.prefix}/{_name(number)}")
        try:
            head = call("head_object", place.uri, **place.place)
            fields = json.loads(folder.read(_name(number)))
        except Missing:
            return None
        holder = Holder(**fields["holder"])
        return cls(holder, fields["renewals"], fields["released"], _age(head))

    def differs_from(self, earlier: "_Record") -> bool:
        """Tell whether it was renewed, or is another holder's, since it was looked at."""
        return (self.holder, self.renewals) != (earlier.holder, earlier.renewals)

    def is_over(self) -> bool:
        """Tell whether its holder has given the folder up, or is dead."""
        return self.is_released or self.age > SECONDS or self.holder.is_dead()

    def say_waiting(self, noun: str) -> None:
        """Tell the user why nothing happens for up to a lease."""
        sys.stderr.write(
            f"{noun} was last written by process {self.holder.pid} of {self.holder.host}, "
            f"{self.age:.0f} seconds ago; waiting for a sign of life until {SECONDS:g} seconds "
            "have passed\n"
        )

    def refusal(self, noun: str) -> UserError:
        """Say that its holder lives."""
        return UserError(
            f"{noun} is being written by another process ({self.holder.pid} on "
            f"{self.holder.host}); wait for it to end, or give another --output"
        )


def _age(head: Any) -> float:
    sent = head["ResponseMetadata"]["HTTPHeaders"]["date"]
    age = email.utils.parsedate_to_datetime(sent) - head["LastModified"]
    return max(0.0, float(age.total_seconds()))
