"""What lies in a zip, and the bytes of its members."""

import copy
import io
import os
import posixpath
import stat
import zipfile
import zlib
from lzma import LZMAError

from datasets.archives.found import Found, resolved
from datasets.unusable import UnreadableImage
from infra.paths import AnyPath, read_range, scanned

UNIX = 3  # the system of a zip whose members have the modes of files
ENCRYPTED = 0x1  # bit of a member's flags
LONGEST_NAMES = 30 + 2 * 65_535  # bytes of a member's own header
DESCRIPTOR = 24  # bytes that may follow a member's data
BROKEN = (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, ValueError)


def contents(path: AnyPath) -> list[Found]:
    """List a zip's files, its links as the files they stand for.

    Raises:
        zipfile.BadZipFile: it has no table of contents, as where it is cut.
        OSError: the file cannot be read.
    """
    with scanned(path) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        links = [info for info in members if _is_link(info)]
        targets = {info.filename: _target(archive, info) for info in links}
    folders = [info.filename for info in members if info.is_dir()]
    files = [
        Found(info.filename, info.header_offset, info.file_size)
        for info in members
        if not info.is_dir() and not _is_link(info)
    ]
    return resolved(files, targets, folders)


def _is_link(info: zipfile.ZipInfo) -> bool:
    return info.create_system == UNIX and stat.S_ISLNK(info.external_attr >> 16)


def _target(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    """Return the name that a link's content gives, from the root of the archive."""
    try:
        content = read(archive, info)
    except UnreadableImage as error:
        return f"({error})"
    name = content.decode("utf-8", "surrogateescape")
    return posixpath.join(posixpath.dirname(info.filename), name)


class Zip:
    """A zip whose members go by the offset of their header: names may occur twice.

    Only its table of contents is kept. Each member is read by one range, by any number of threads.

    Args:
        path: of the file.

    Raises:
        zipfile.BadZipFile: it has no table of contents.
    """

    def __init__(self, path: AnyPath) -> None:
        self._path = path
        with scanned(path) as file:
            self._file = zipfile.ZipFile(file)
            self._length = file.seek(0, os.SEEK_END)
        self._members = {info.header_offset: info for info in self._file.infolist()}

    def read(self, offset: int) -> bytes:
        """Read the member whose header is at ``offset``, as `read` does."""
        member = self._members[offset]
        most = LONGEST_NAMES + member.compress_size + DESCRIPTOR
        data = read_range(self._path, offset, max(0, min(most, self._length - offset)))
        one = copy.copy(self._file)  # with the same table of contents, and a file of its own
        one.fp = _Part(data, offset)
        return read(one, member)


class _Part(io.BytesIO):
    """A part of a file, in which offsets count from the beginning of the file."""

    def __init__(self, data: bytes, start: int) -> None:
        super().__init__(data)
        self._start = start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return super().seek(offset - self._start, whence) + self._start

    def tell(self) -> int:
        return super().tell() + self._start


def read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Read a member.

    Raises:
        UnreadableImage: `encrypted`, `unsupported_compression` (such as Deflate64) or
            `damaged_member` (a checksum, a header or a compressed stream that is wrong).
    """
    if member.flag_bits & ENCRYPTED:
        raise UnreadableImage("encrypted", "a member with a password")
    try:
        return archive.read(member)
    except NotImplementedError as error:
        raise UnreadableImage("unsupported_compression", str(error)) from error
    except BROKEN as error:
        raise UnreadableImage("damaged_member", str(error)) from error
