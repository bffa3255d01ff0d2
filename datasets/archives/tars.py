"""What lies in a tar, the damaged one included: nothing that is lost is taken for the end.

Python's own reader takes a damaged header, a hole of zeros and a cut at a member's end for the end
of an archive. Here reading goes on at the next block that is a valid header, and every byte between
two members, or after the last, is accounted for.
"""

import posixpath
from collections.abc import Iterator
from tarfile import (  # type: ignore[attr-defined]  # two errors that typeshed does not know
    BLOCKSIZE,
    XGLTYPE,
    HeaderError,
    InvalidHeaderError,
    SubsequentHeaderError,
    TarError,
    TarFile,
    TarInfo,
)
from typing import IO, Self

from datasets.archives.found import Found, resolved

BLOCK = BLOCKSIZE
END_MARK = 2 * BLOCK  # bytes of zeros
CHUNK = 1 << 20


class _Header(TarInfo):
    """A header that is passed over where tarfile would give up the rest of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise InvalidHeaderError("a negative size")
        return header

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except SubsequentHeaderError as error:
            raise InvalidHeaderError(str(error)) from error


def contents(file: IO[bytes]) -> list[Found]:
    """List a tar's files, its links as the files they stand for, and its damage.

    Args:
        file: the tar, decompressed and seekable.

    Raises:
        OSError: the file cannot be read.
    """
    found: list[Found] = []
    links: dict[str, str] = {}
    folders: list[str] = []
    end = 0
    last: TarInfo | None = None
    for header, following in _headers(file):
        if header.offset > end and (gap := _gap(file, end, header.offset)):
            found.append(gap)
        if header.isdir():
            folders.append(header.name)
        elif header.islnk():
            links[header.name] = header.linkname
        elif header.issym():
            links[header.name] = posixpath.join(posixpath.dirname(header.name), header.linkname)
        else:
            found.append(_file(header))
        end, last = following, header
    found += _after(file, end, last)
    return resolved(found, links, folders)


def _headers(file: IO[bytes]) -> Iterator[tuple[TarInfo, int]]:
    """Yield every valid header, and the offset at which its member ends."""
    file.seek(0)
    try:
        archive = TarFile(fileobj=file, ignore_zeros=True, tarinfo=_Header)
        while (header := archive.next()) is not None:
            if archive.offset < header.offset_data:  # a PAX header gives a size below zero
                archive.offset = header.offset_data
            else:
                yield header, archive.offset
    except (TarError, ValueError, OverflowError, RecursionError):
        return  # the end lies within a member, or what follows is no tar: `_after` says which


def _file(header: TarInfo) -> Found:
    if not header.isreg():
        return Found(header.name, ignored="special_file")
    if header.issparse():
        return Found(header.name, size=header.size, ignored="sparse_member")
    return Found(header.name, header.offset_data, header.size)


def _gap(file: IO[bytes], start: int, stop: int) -> Found | None:
    """Say what lies between two members; None for a header that speaks of all that follow."""
    start = _after_global_headers(file, start, stop)
    if start >= stop:
        return None
    nature = "belong to no member that can be read" if _holds_data(file, start, stop) else "are 0"
    return _damage(start, stop - start, f"{stop - start:,} bytes at offset {start:,} {nature}")


def _after_global_headers(file: IO[bytes], start: int, stop: int) -> int:
    while start < stop:
        file.seek(start)
        try:
            header = TarInfo.frombuf(file.read(BLOCK), "utf-8", "surrogateescape")
        except HeaderError:
            break
        if header.type != XGLTYPE:
            break
        start += BLOCK + -(-header.size // BLOCK) * BLOCK
    return start


def _after(file: IO[bytes], end: int, last: TarInfo | None) -> Iterator[Found]:
    """Say what is wrong after the last member: it is cut, rubbish follows, or no end mark does."""
    start = last.offset_data if last is not None else 0
    length = start + sum(len(chunk) for chunk in _chunks(file, start))
    rest = max(0, length - end)
    if last is not None and last.isreg() and length < last.offset_data + last.size:
        there = length - last.offset_data
        said = f"it ends within its last member: {there:,} of {last.size:,} bytes are there"
        yield _damage(length, 0, said)
    elif _holds_data(file, end, length):
        said = f"the last {rest:,} bytes, from offset {end:,}, belong to no member that can be read"
        yield _damage(end, rest, said)
    elif rest < END_MARK:
        said = f"it ends at offset {length:,} without an end mark, so more may have followed"
        yield _damage(length, 0, said)


def _holds_data(file: IO[bytes], start: int, stop: int) -> bool:
    """Tell whether any byte of a range is not zero."""
    return any(chunk.strip(b"\0") for chunk in _chunks(file, start, stop))


def _chunks(file: IO[bytes], start: int, stop: int | None = None) -> Iterator[bytes]:
    file.seek(start)
    while chunk := file.read(CHUNK if stop is None else max(0, min(CHUNK, stop - start))):
        start += len(chunk)
        yield chunk


def _damage(offset: int, size: int, said: str) -> Found:
    return Found("", offset, size, "damage", said)
