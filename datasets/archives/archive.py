"""An archive, and what a job keeps of it: its listing, and what gives access to any member.

| kind | how a member is read |
|---|---|
| `.tar` | at its offset |
| `.tar.gz`, `.tgz` | by a seek index (indexed_gzip), at a few megabytes of decompression each |
| `.tar.zst`, `.tar.xz`, and a `.tar.gz` that is damaged | from an uncompressed copy |
| `.zip` | by its table of contents |

All three are kept in one folder, under a name made of the archive's path, length and stamp
(`datasets.folders`), so that another version of the archive has others. The copies are temporary:
`forget_copies` deletes them, and `prepare` makes one again from the archive.

Where the folder is in a bucket, the copies cannot lie in it: each machine that reads from one makes
it in the folder's twin on its own disk (`infra.paths.local_twin`).
"""

import fcntl
import gzip
import hashlib
import lzma
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import astuple
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from datasets.archives import gzips, tars, zips
from datasets.archives.found import Found
from datasets.folders import Status, status
from infra.errors import UserError
from infra.paths import (
    AnyPath,
    local_twin,
    read_if_there,
    scanned,
    write_bytes,
    written_by_name,
)

VERSION = 1  # of what `contents` finds: a listing that an older program kept is made anew
COPY_CHUNK = 1 << 12  # bytes; as much is lost before a damaged place
LONGEST_HEADER = 18  # bytes of a zstd frame
LONGEST_WINDOW = 1 << 31  # of zstd --long=31
CUT = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zstandard.ZstdError)
LISTING = pa.schema(
    [
        ("name", pa.binary()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("ignored", pa.string()),
        ("detail", pa.binary()),
    ]
)


COPY = ".tar"
"""Ending of the names of uncompressed copies."""


def _zstandard(file: IO[bytes]) -> Any:
    reader = zstandard.ZstdDecompressor(max_window_size=LONGEST_WINDOW)
    return reader.stream_reader(file, read_across_frames=True)


GZIP = (".tar.gz", ".tgz")
ZSTD = (".tar.zst", ".tzst")
DECOMPRESSED: dict[str, Callable[[IO[bytes]], Any]] = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.zst": _zstandard,
    ".tzst": _zstandard,
    ".tar.xz": lzma.open,
    ".txz": lzma.open,
}
EXTENSIONS = (".tar", *DECOMPRESSED, ".zip")


def extension(name: str) -> str | None:
    """Return the extension by which a name is an archive's, in small letters; None for others."""
    return next((e for e in EXTENSIONS if name.lower().endswith(e)), None)


class BrokenArchive(ValueError):  # noqa: N818  (an outcome that is said)
    """An archive in which nothing can be found."""


class Archive:
    """One archive.

    Args:
        path: of a file whose name `extension` knows.
        kept: the folder of what a job keeps; it is made where it is needed.
        known: what is known of the file; None looks at it.

    Raises:
        OSError: the file is not there.
    """

    def __init__(self, path: AnyPath, kept: AnyPath, known: Status | None = None) -> None:
        self.path = path.absolute()
        _, self.size, self.stamp = known or status(path)
        self.extension = extension(path.name)
        place = os.fsencode(str(self.path))
        identity = b"%d\0%s\0%d\0%d" % (VERSION, place, self.size, self.stamp)
        stem = hashlib.sha256(identity).hexdigest()[:16]
        self._listing, self._index = kept / f"{stem}.parquet", kept / f"{stem}.gzidx"
        self.copy = local_twin(kept) / f"{stem}{COPY}"
        self._named_copy = kept / self.copy.name

    @property
    def listed(self) -> bool:
        """Whether the listing is at hand."""
        return self._listing.is_file()

    @property
    def place(self) -> tuple[AnyPath, AnyPath | None]:
        """The file that is read, and what gives access to its members, where there is such a thing.

        That is the seek index; or, where every machine makes a copy of its own, the path that names
        it. Offsets count in what a tar is decompressed to.
        """
        if self.extension in (".tar", ".zip"):
            return self.path, None
        if self._index.is_file():
            return self.path, self._index
        return (self.path, self._named_copy) if self.copy != self._named_copy else (self.copy, None)

    @property
    def _needs_copy(self) -> bool:
        return self.extension in DECOMPRESSED and not self._index.is_file()

    def contents(self) -> list[Found]:
        """List what lies in the archive; what an earlier call found, unless the archive changed.

        Raises:
            BrokenArchive: nothing can be found in it.
            OSError: the archive cannot be read, or what is kept of it cannot be written.
            UserError: the disk has no room for an uncompressed copy.
        """
        kept = read_if_there(self._listing)
        if kept is not None:
            rows = pq.read_table(pa.BufferReader(kept)).to_pylist()
            return [_found(row) for row in rows]
        found = self._list()
        if not any(file.ignored != "damage" for file in found):
            said = "; ".join(file.detail for file in found) or "it is empty"
            raise BrokenArchive(said)
        names = [field.name for field in LISTING]
        rows = [dict(zip(names, astuple(file), strict=True)) for file in found]
        for row in rows:
            row["name"], row["detail"] = os.fsencode(row["name"]), os.fsencode(row["detail"])
        buffer = BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, LISTING), buffer, compression="zstd")
        write_bytes(self._listing, buffer.getvalue())
        return found

    def _list(self) -> list[Found]:
        if self.extension == ".zip":
            try:
                return zips.contents(self.path)
            except zips.BROKEN as error:
                raise BrokenArchive(str(error)) from error
        if self.extension in GZIP and (found := self._indexed()) is not None:
            return found
        self.prepare()
        with scanned(self.copy if self._needs_copy else self.path) as file:
            return tars.contents(file)

    def _indexed(self) -> list[Found] | None:
        """List a .tar.gz and keep its seek index; None where its compressed data are damaged."""
        try:
            with gzips.indexed(self.path) as file:
                found = tars.contents(file)
                with written_by_name(self._index) as target:
                    file.export_index(str(target))
        except gzips.DamagedGzip:
            return None
        return found

    def prepare(self) -> None:
        """Make the uncompressed copy, where members are read from one and it is not there.

        Of several processes of a machine one makes it, and the others wait. Of an archive whose
        compressed data are damaged, the copy has what comes before.

        Raises:
            UserError: the disk has too little room.
        """
        if not self._needs_copy or self.copy.exists():
            return
        with _locked(self.copy.with_suffix(".lock")):
            if not self.copy.exists():
                self._check_room()
                self._decompress()

    def _decompress(self) -> None:
        with ExitStack() as stack:
            target = stack.enter_context(written_by_name(self.copy))
            file = stack.enter_context(target.open("wb"))
            packed = stack.enter_context(scanned(self.path))
            source = stack.enter_context(DECOMPRESSED[str(self.extension)](packed))
            with suppress(*CUT):  # the copy ends there, and the listing says so, as of a cut tar
                while chunk := source.read1(COPY_CHUNK):
                    file.write(chunk)

    def _check_room(self) -> None:
        needed, free = self._length(), shutil.disk_usage(self.copy.parent).free
        if needed > free:
            raise UserError(
                f"{self.path}: is read from an uncompressed copy in {self.copy.parent}, which "
                f"takes at least {needed / 1e9:,.1f} GB; {free / 1e9:,.1f} GB are free there. Free "
                "some, or pack the archive again as .tar, which needs no copy"
            )

    def _length(self) -> int:
        """Return the decompressed length, in bytes; where the archive does not say it, its own."""
        said = 0
        if self.extension in ZSTD:
            with scanned(self.path) as file, suppress(zstandard.ZstdError):
                said = zstandard.frame_content_size(file.read(LONGEST_HEADER))
        return max(self.size, said)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process has this lock, and hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def copy_here(path: AnyPath, named: AnyPath, stamp: int) -> Path | None:
    """Return the uncompressed copy of an archive on this machine, which is made where it lacks.

    Args:
        path: of the archive.
        named: the path that names the copy, as `Archive.place` gives it.
        stamp: of the archive, when it was listed.

    Returns:
        None if the archive was replaced since.

    Raises:
        OSError: the archive is not there.
        UserError: the disk has too little room.
    """
    copy = local_twin(named.parent) / named.name
    if not copy.exists():
        archive = Archive(path, named.parent)
        if archive.stamp != stamp:
            return None
        archive.prepare()
    return copy


def forget_copies(kept: AnyPath) -> None:
    """Delete the uncompressed copies that a job made on this machine."""
    for copy in local_twin(kept).glob(f"*{COPY}"):
        copy.unlink()
        copy.with_suffix(".lock").unlink(missing_ok=True)


def _found(row: dict[str, Any]) -> Found:
    return Found(
        os.fsdecode(row["name"]),
        row["offset"],
        row["size"],
        row["ignored"],
        os.fsdecode(row["detail"]),
    )
