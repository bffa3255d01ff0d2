"""An archive, and what a job keeps of it: its listing, and what gives access to any member.

| kind | how a member is read |
|---|---|
| `.tar` | at its offset |
| `.tar.gz`, `.tgz` | by a seek index (indexed_gzip), at a few megabytes of decompression each |
| `.tar.zst`, `.tar.xz`, and a `.tar.gz` that is damaged | from an uncompressed copy |
| `.zip` | by its table of contents |

All three are kept in one folder, under a name made of the archive's path, length and modification
time, so that another version of the archive has others. The copies are temporary: `forget_copies`
deletes them, and `prepare` makes one again from the archive.
"""

import gzip
import hashlib
import lzma
import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from datasets.archives import tars, zips
from datasets.archives.found import Found
from infra.errors import UserError
from infra.storage import write_bytes, written_by_name

VERSION = 1  # of what `contents` finds: a listing that an older program kept is made anew
SEEK_POINT_SPACING = 4 << 20  # bytes of decompressed data between two points of a .tar.gz index
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


def _zstandard(path: Path) -> Any:
    reader = zstandard.ZstdDecompressor(max_window_size=LONGEST_WINDOW)
    return reader.stream_reader(path.open("rb"), read_across_frames=True)


GZIP = (".tar.gz", ".tgz")
ZSTD = (".tar.zst", ".tzst")
DECOMPRESSED: dict[str, Callable[[Path], Any]] = {
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

    Raises:
        OSError: the file is not there.
    """

    def __init__(self, path: Path, kept: Path) -> None:
        self.path = path.absolute()
        status = path.stat()
        self.size, self.stamp = status.st_size, status.st_mtime_ns
        self.extension = extension(path.name)
        identity = b"%d\0%s\0%d\0%d" % (VERSION, os.fsencode(self.path), self.size, self.stamp)
        stem = hashlib.sha256(identity).hexdigest()[:16]
        self._listing, self._index, self._copy = (
            kept / f"{stem}{kind}" for kind in (".parquet", ".gzidx", ".tar")
        )

    @property
    def listed(self) -> bool:
        """Whether the listing is at hand."""
        return self._listing.exists()

    @property
    def place(self) -> tuple[Path, Path | None]:
        """The file in which the members' offsets count, and the seek index where there is one."""
        if self.extension in (".tar", ".zip"):
            return self.path, None
        return (self.path, self._index) if self._index.exists() else (self._copy, None)

    def contents(self) -> list[Found]:
        """List what lies in the archive; what an earlier call found, unless the archive changed.

        Raises:
            BrokenArchive: nothing can be found in it.
            OSError: the archive cannot be read, or what is kept of it cannot be written.
            UserError: the disk has no room for an uncompressed copy.
        """
        if self.listed:
            rows = pq.read_table(self._listing).to_pylist()
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
        with self.place[0].open("rb") as file:
            return tars.contents(file)

    def _indexed(self) -> list[Found] | None:
        """List a .tar.gz and keep its seek index; None where its compressed data are damaged."""
        import indexed_gzip

        try:
            with indexed_gzip.IndexedGzipFile(str(self.path), spacing=SEEK_POINT_SPACING) as file:
                file.build_full_index()  # first: without it, listing would cost twice as much
                found = tars.contents(file)
                with written_by_name(self._index) as target:
                    file.export_index(str(target))
        except indexed_gzip.ZranError:
            return None
        return found

    def prepare(self) -> None:
        """Make the uncompressed copy, where members are read from one and it is not there.

        Of an archive whose compressed data are damaged, the copy has what comes before.

        Raises:
            UserError: the disk has too little room.
        """
        place, _ = self.place
        if place != self._copy or self._copy.exists():
            return
        self._copy.parent.mkdir(parents=True, exist_ok=True)
        self._check_room()
        with (
            DECOMPRESSED[str(self.extension)](self.path) as source,
            written_by_name(self._copy) as target,
            target.open("wb") as file,
            suppress(*CUT),  # the copy ends there; the listing says so, as of a tar that is cut
        ):
            while chunk := source.read1(COPY_CHUNK):
                file.write(chunk)

    def _check_room(self) -> None:
        needed, free = self._length(), shutil.disk_usage(self._copy.parent).free
        if needed > free:
            raise UserError(
                f"{self.path}: is read from an uncompressed copy in {self._copy.parent}, which "
                f"takes at least {needed / 1e9:,.1f} GB; {free / 1e9:,.1f} GB are free there. Free "
                "some, or pack the archive again as .tar, which needs no copy"
            )

    def _length(self) -> int:
        """Return the decompressed length, in bytes; where the archive does not say it, its own."""
        said = 0
        if self.extension in ZSTD:
            with self.path.open("rb") as file, suppress(zstandard.ZstdError):
                said = zstandard.frame_content_size(file.read(LONGEST_HEADER))
        return max(self.size, said)


def forget_copies(kept: Path) -> None:
    """Delete the uncompressed copies that a job made."""
    for copy in kept.glob("*.tar"):
        copy.unlink()


def _found(row: dict[str, Any]) -> Found:
    return Found(
        os.fsdecode(row["name"]),
        row["offset"],
        row["size"],
        row["ignored"],
        os.fsdecode(row["detail"]),
    )
