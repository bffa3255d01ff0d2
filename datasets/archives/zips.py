"""What lies in a zip, and the bytes of its members."""

import posixpath
import stat
import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path

from datasets.archives.found import Found, resolved
from datasets.unusable import UnreadableImage

UNIX = 3  # the system of a zip whose members have the modes of files
ENCRYPTED = 0x1  # bit of a member's flags
BROKEN = (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, ValueError)


def contents(path: Path) -> list[Found]:
    """List a zip's files, its links as the files they stand for.

    Raises:
        zipfile.BadZipFile: it has no table of contents, as where it is cut.
        OSError: the file cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
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
    """An open zip, whose members go by the offset of their header: names may occur twice.

    Raises:
        zipfile.BadZipFile: it has no table of contents.
    """

    def __init__(self, path: Path) -> None:
        self._file = zipfile.ZipFile(path)
        self._members = {info.header_offset: info for info in self._file.infolist()}

    def read(self, offset: int) -> bytes:
        """Read the member whose header is at ``offset``, as `read` does."""
        return read(self._file, self._members[offset])


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
