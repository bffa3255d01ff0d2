"""What a program may do with a folder, wherever the folder lies.

Names are relative, with `/` between their parts, and mean the same bytes in every kind of folder:
an accented letter stored as one code point and one stored as two are different names.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from infra.errors import UserError


class Missing(UserError, FileNotFoundError):  # noqa: N818  (an answer that callers expect)
    """There is nothing under this name; whoever expects that of a disk expects it of a bucket."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.strerror = "there is no such file"


class Taken(UserError):  # noqa: N818  (an answer that callers expect)
    """There is something else under a name that was to be written for the first time."""


class Unavailable(UserError):  # noqa: N818  (an answer that callers expect)
    """The place of a file cannot be asked: it is away, refuses, or the credentials have expired.

    This says nothing of the file, so nobody may count it as a missing or a damaged one.
    """


class Refused(Unavailable):
    """To read this file is refused, or it is missing and the place does not say so."""


class Replaced(UserError):  # noqa: N818  (an answer that callers expect)
    """The file is another version than the one that was meant."""


class Short(UserError):  # noqa: N818  (an answer that callers expect)
    """The file ends before the bytes that were asked for."""


class Entry(NamedTuple):
    """A file of a folder."""

    name: str
    """Its name, relative to the folder."""
    size: int
    """Its length in bytes."""
    modified: int = 0
    """When it was written, in nanoseconds since 1970."""
    version: str = ""
    """Another one as soon as it has other bytes (an ETag); empty where a folder has none."""


class Folder(Protocol):
    """A folder on a disk, or a prefix in a bucket; may be pickled, forked and used by threads."""

    @property
    def uri(self) -> str:
        """The path or URI that opens this folder."""

    def child(self, name: str) -> Self:
        """Return the folder of this name below."""

    def read(self, name: str) -> bytes:
        """Return all bytes of a file.

        Raises:
            Missing: there is none.
        """

    def read_into(
        self, name: str, offset: int, buffers: Sequence[memoryview], length: int | None = None
    ) -> None:
        """Fill ``buffers``, one after another, with the bytes of a file from ``offset`` on.

        Args:
            name: of the file.
            offset: first byte.
            buffers: memory to fill, of bytes.
            length: bytes that the whole file must have; None for any number.

        Raises:
            Missing: there is no such file.
            Unavailable: nobody can say.
            Short: it ends before the buffers are full.
            UserError: it has another length.
        """

    def fetch(self, name: str, target: Path, sha256: str | None = None) -> None:
        """Copy a file to the local path ``target``, which appears only whole.

        Args:
            name: of the file.
            target: path of the copy.
            sha256: hex digest that the bytes must have; None takes the stored one if there is one.

        Raises:
            Missing: there is no such file.
            UserError: its bytes have another digest.
        """

    def put(self, name: str, data: bytes, *, exclusive: bool = False) -> None:
        """Write a small file, which appears only whole.

        Args:
            name: of the file.
            data: its bytes.
            exclusive: only if there is none yet. To find the same bytes there counts as having
                written them, so that an attempt whose answer was lost can be repeated: writers
                that race for a name must each put something of their own into ``data``.

        Raises:
            Taken: with ``exclusive``, there is a file with other bytes.
        """

    def put_file(self, name: str, path: Path, sha256: str) -> bool:
        """Copy a local file here; it appears only whole, and is not sent if it is here already.

        Args:
            name: of the file here.
            path: the local file.
            sha256: hex digest of its bytes, which is checked, as is what was stored.

        Returns:
            Whether anything was sent.

        Raises:
            UserError: the local file has another digest, or the stored one has.
        """

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield every file below whose name begins with ``prefix``, sorted by name.

        Only names that begin so are asked for, a page at a time; they are all in memory (about 200
        bytes each) before the first is yielded, since not every server sorts them by their bytes.
        """

    def size(self, name: str) -> int | None:
        """Return the length of a file in bytes, None if there is no such file."""

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""

    def abort_leftovers(self) -> int:
        """Remove what killed processes left of files that they were writing here.

        To be called by the job that holds the folder, before any process of it writes: what
        another process is writing at this time would be removed too.

        Returns:
            The number of unfinished files.
        """


def checked_name(name: str) -> str:
    """Return a name that means one file below a folder.

    Raises:
        ValueError: it is empty, absolute, or has a part that is empty, `.` or `..`.
    """
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file below a folder")
    return name


def of_other_length(file: str, found: int | str, expected: int | None) -> str:
    """Say that a file has another length, in bytes, than it must have."""
    return f"{file}: has {found} bytes, and {expected} were expected; copy it anew"
