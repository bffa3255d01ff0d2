"""The table of scores: a CSV file that grows as images are scored, and that a rerun continues.

In a bucket it is a file of this machine that is sent there now and then (`infra.growing`).
"""

import csv
import fcntl
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO, NamedTuple, Self

from datasets.sources import ImageRef
from datasets.unusable import TRANSIENT
from infra.config import differences
from infra.errors import UsageError, UserError
from infra.growing import GrowingFile
from infra.paths import AnyPath
from infra.storage import explained, sync_folder


class Row(NamedTuple):
    """What became of one image; every field is a column."""

    key: str
    """The image."""
    bytes: str
    """Length of the image file."""
    modified: str
    """Modification time, in nanoseconds, of the file that holds it; in a bucket another number that
    changes with it."""
    score: str = ""
    """A number as text; empty where there is none."""
    drop_reason: str = ""
    """Why there is no score; empty where there is one."""
    detail: str = ""
    """What else the scorer says, as JSON; or the error."""


class ScoreTable:
    """A CSV file with a row for each image, open for appending inside a `with` block.

    A line that a kill left unfinished is cut off. The last row of an image counts.

    Args:
        path: the file; it is made if it is not there.
        identity: of the scorer; its values follow the columns of `Row` in every row.
    """

    def __init__(self, path: AnyPath, identity: Mapping[str, str]) -> None:
        self.path = path
        self._growing = GrowingFile(path)
        self.rows: dict[str, Row] = {}
        self._identity = dict(identity)
        self._header = [*Row._fields, *identity]

    def __enter__(self) -> Self:
        """Take the file for this process, and read what it holds.

        Raises:
            UsageError: a file of another kind, or of another scorer; nothing was changed.
            UserError: another process writes it, or it cannot be written.
        """
        with ExitStack() as opened:
            opened.enter_context(self._growing.held())
            self._file = opened.enter_context(self._taken())
            self._file.seek(0)
            text = self._file.read()
            complete = text[: text.rfind(b"\n") + 1]
            if complete or not _lines([self._header]).startswith(text):
                self._read(complete or text)
            self._file.truncate(len(complete))
            if not complete:
                self._write([self._header])
                sync_folder(self._growing.local.parent)
            self._growing.send_if_possible()
            self._open = opened.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def _taken(self) -> BinaryIO:
        """Open the file and lock it, so that no other process writes it."""
        try:
            self._growing.local.parent.mkdir(parents=True, exist_ok=True)
            file = self._growing.local.open("a+b")
        except OSError as error:
            raise explained(error, self._growing.local) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise UserError(
                f"--output {self.path}: being written by another process; wait for it to end, or "
                "give another file"
            ) from error
        return file

    def _read(self, text: bytes) -> None:
        decoded = io.StringIO(text.decode(errors="replace"), newline="")
        header, *lines = csv.reader(decoded)
        own = len(Row._fields)
        if header[:own] != self._header[:own] or any(len(row) != len(header) for row in lines):
            raise UsageError(
                f"--output {self.path}: not a table that pipelines.score wrote; give another file"
            )
        for row in lines:
            theirs = dict(zip(header[own:], row[own:], strict=True))
            if theirs != self._identity:
                raise UsageError(
                    f"--output {self.path} holds scores of another scorer "
                    f"({'; '.join(differences(self._identity, theirs))}); give another file"
                )
            self.rows[row[0]] = Row(*row[:own])

    def left(self, refs: Iterable[ImageRef]) -> list[ImageRef]:
        """Return the images that have no row, have changed, or may do better now."""
        return [ref for ref in refs if not self._done(ref)]

    def _done(self, ref: ImageRef) -> bool:
        row = self.rows.get(ref.key)
        if row is None or row.drop_reason in TRANSIENT:
            return False
        return (row.bytes, row.modified) == (str(ref.size), str(ref.stamp))

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows; they are on this machine's disk on return.

        Raises:
            UserError: another process has taken over the table in the bucket.
        """
        self._write([[*row, *self._identity.values()] for row in rows])
        self.rows |= {row.key: row for row in rows}
        self._growing.send_now_and_then()

    def _write(self, rows: Sequence[Sequence[str]]) -> None:
        self._file.write(_lines(rows))
        self._file.flush()
        os.fsync(self._file.fileno())


def _lines(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
