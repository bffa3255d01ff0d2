"""Raw inputs: the images of folders, archives and files, with their keys, in a fixed order.

An input is a folder (searched below, the archives in it included), one image file, or an archive
(`datasets.archives.archive` lists the kinds), read in place: nothing is unpacked. It lies on a disk
or in a bucket; what there has the same names has the same keys, in the same order. `NAME=PATH` puts
NAME/ before the keys of that input, unless the whole text names a file or the NAME is none
(`datasets.names`); `pkg:PACKAGE/PATH` names a file that an installed package ships.

The key of an image is its path inside the input without the extension, made safe
(`datasets.names.sample_key`). The order and the split of an image depend on its key, not on its
path. Whatever is met and is no image is listed too, with its kind (`datasets.archives.found`).
"""

import dataclasses
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import PurePosixPath

import pyarrow as pa

from datasets.archives import archive
from datasets.archives.archive import COPY, Archive, BrokenArchive, copy_here
from datasets.archives.found import LOSSES, Found
from datasets.archives.gzips import Gzip
from datasets.archives.zips import Zip
from datasets.inputs import Input, Thing, is_hidden, met, parsed
from datasets.names import IMAGE_EXTENSIONS, is_own_name, sample_key, shown
from datasets.unusable import UnreadableImage
from infra.ahead import map_ahead
from infra.config import digest
from infra.errors import UsageError, UserError
from infra.folders.contract import Refused, Replaced, Short
from infra.paths import AnyPath, path_from, read_range
from infra.storage import explained

OPEN_ARCHIVES = 8  # handles a reading process keeps open
UNREADABLE = (BrokenArchive, OSError, Refused)
"""What one archive that cannot be read raises; a store that is away raises something else."""
LISTED_AT_ONCE = max(8, os.cpu_count() or 1)  # archives: in a bucket most of it is waiting
MOST_REFUSED = 64  # images one after another; then it is the permissions, and not the images

Watch = Callable[[int, int], AbstractContextManager[Callable[[int], None]]]
"""Shows the listing of archives: given their number and their megabytes, it yields the function
that is told the megabytes of each that is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """The place of one image's bytes, which is sent to workers instead of the bytes."""

    key: str
    """Unique over all inputs; no dot."""
    origin: str
    """The input it came from: the name that the user gave it, or else its base name."""
    file: str
    """Its name inside the input, as text."""
    path: str
    """The file that is read: the image, the archive that holds it, or that archive's copy; a path
    or a URI as text."""
    member: str | None = None
    """Name inside a .zip; None for other files."""
    offset: int = 0
    """First byte inside the (decompressed) tar, or of the header inside a .zip; else 0."""
    size: int
    """Length in bytes."""
    stamp: int
    """Of the image or the archive, as `datasets.folders` makes it: a changed file is noticed."""
    seek_index: str | None = None
    """Path of the seek index of a .tar.gz, or the name of the uncompressed copy that each machine
    makes of an archive, as `Archive.place` gives them; None for other files."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Something in an input that is no image: a row of `ignored.parquet`."""

    origin: str
    """The input, as in `ImageRef`."""
    file: str
    """Its name inside the input, as text."""
    kind: str
    """One of `datasets.archives.found.IGNORED`."""
    detail: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything in all inputs: images sorted by key, and what is no image."""

    images: tuple[ImageRef, ...]
    ignored: tuple[Ignored, ...] = ()
    """Sorted by input, name and place."""
    archives: tuple[Archive, ...] = field(default=(), compare=False)

    def first(self, count: int | None) -> "Listing":
        """Return the first ``count`` images by key; all of them for None."""
        return dataclasses.replace(self, images=self.images[:count])

    def fingerprint(self) -> str:
        """Identify the input without reading it: keys, sizes and modification times."""
        return digest([[ref.key, ref.size, ref.stamp] for ref in self.images])

    def ignored_kinds(self) -> dict[str, int]:
        """Count what is no image by kind."""
        return dict(sorted(Counter(thing.kind for thing in self.ignored).items()))

    def losses(self) -> int:
        """Count the places at which images may have been lost."""
        return sum(thing.kind in LOSSES for thing in self.ignored)

    def renamed(self) -> int:
        """Count the images whose names had to be changed to give a safe key."""
        return sum(not is_own_name(ref.file) for ref in self.images)

    def prepare(self) -> None:
        """Make the uncompressed copies that are read and not there, before any image is read.

        Raises:
            UserError: the disk has too little room.
        """
        for one in self.archives:
            one.prepare()


def list_images(
    inputs: Sequence[str], kept: AnyPath, watch: Watch | None = None, option: str = "--input"
) -> Listing:
    """List everything in all inputs.

    Args:
        inputs: folders, image files, archives; each optionally ``NAME=PATH``.
        kept: folder of what is kept of archives: listings, seek indexes, uncompressed copies.
        watch: shows the listing of those archives that are not listed yet.
        option: that names the inputs, for the messages.

    Raises:
        UsageError: a missing or empty input, a kind of file that cannot be read in place, an
            archive in which nothing can be found, or one key met twice.
        UserError: the disk has no room for an uncompressed copy.
    """
    if not inputs:
        raise UsageError(f"no input; give {option} with folders, archives or image files")
    given = [parsed(text, option) for text in inputs]
    parts = [list(met(item, kept)) for item in given]
    archives = [one for things in parts for _, one in things if isinstance(one, Archive)]
    _list_new([one for one in archives if not one.listed], watch)
    images: list[ImageRef] = []
    ignored: list[Ignored] = []
    for item, things in zip(given, parts, strict=True):
        before = len(images), len(ignored)
        for part, thing in things:
            for file, ref in _opened(part, thing):
                if ref is None:
                    ignored.append(_ignored(part, file))
                else:
                    images.append(ref)
        if len(images) == before[0]:
            raise _no_image(item, ignored[before[1] :])
    images.sort(key=lambda ref: ref.key)
    _refuse_duplicates(images, option, is_one=len(given) == 1)
    ignored.sort(key=lambda thing: (thing.origin, thing.file, thing.detail))
    return Listing(tuple(images), tuple(ignored), tuple(archives))


def _no_image(item: Input, ignored: Sequence[Ignored]) -> UsageError:
    kinds = Counter(thing.kind for thing in ignored)
    counted = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
    return UsageError(
        f"{item.option} {item.text}: holds no image ({counted or 'nothing at all'}); expected "
        f"{', '.join(sorted(IMAGE_EXTENSIONS))}, or an archive of them"
    )


def _list_new(archives: Sequence[Archive], watch: Watch | None) -> None:
    """List archives that are not listed yet, several at once; what fails is met again later."""
    sizes = [one.size // 1_000_000 for one in archives]
    shown_by = watch(len(archives), sum(sizes)) if watch and archives else nullcontext(lambda _: 0)
    threads = min(len(archives), LISTED_AT_ONCE)
    with shown_by as advance:
        for size, _ in zip(sizes, map_ahead(_try_to_list, archives, threads=threads), strict=True):
            advance(size)


def _try_to_list(one: Archive) -> None:
    try:
        one.contents()
    except UNREADABLE:
        return  # `_opened` meets the same error, and knows whether the user named the archive


def _opened(part: Input, thing: Thing) -> Iterator[tuple[Found, ImageRef | None]]:
    """Yield every file of a part with its place if it is an image, and without if it is none."""
    if not isinstance(thing, Archive):
        found, stamp = thing
        yield _judged(found), _ref(part, found, part.path / found.name, stamp)
        return
    try:
        contents = thing.contents()
    except UNREADABLE as error:
        if not part.inside:
            raise _refused(part, error) from error
        yield Found("", ignored="unreadable_archive", detail=str(error)), None
        return
    path, access = thing.place
    for found in contents:
        ref = _ref(part, found, path, thing.stamp)
        if ref is not None and thing.extension == ".zip":
            ref = dataclasses.replace(ref, member=found.name)
        elif ref is not None and access is not None:
            ref = dataclasses.replace(ref, seek_index=str(access))
        yield _judged(found, nested=True), ref


def _refused(part: Input, error: Exception) -> UsageError:
    if isinstance(error, UserError):
        return UsageError(f"{part.option} {error}")
    if isinstance(error, OSError):
        return UsageError(f"{part.option} {explained(error, str(part.path))}")
    said = f"a broken archive ({error}); download or pack it again"
    return UsageError(f"{part.option} {part.text}: {said}")


def _judged(found: Found, *, nested: bool = False) -> Found:
    """Give a file that is no image the kind of what is ignored."""
    if found.ignored:
        return found
    kind = "nested_archive" if nested and archive.extension(found.name) else "other_file"
    return dataclasses.replace(found, ignored="hidden" if is_hidden(found.name) else kind)


def _ref(part: Input, found: Found, path: AnyPath, stamp: int) -> ImageRef | None:
    """Return the place of an image; None for what is none by its extension.

    What an image really holds is found out when it is decoded.
    """
    suffix = PurePosixPath(found.name).suffix.lower()
    if found.ignored or suffix not in IMAGE_EXTENSIONS or is_hidden(found.name):
        return None
    name = found.name
    if part.inside:
        stem = part.inside[: -len(archive.extension(part.inside) or "")]
        name = f"{stem}/{found.name.lstrip('/')}"
    return ImageRef(
        key=sample_key(PurePosixPath(name), part.prefix),
        origin=part.origin,
        file=_file(part, found),
        path=str(path.absolute()),
        offset=found.offset,
        size=found.size,
        stamp=stamp,
    )


def _file(part: Input, found: Found) -> str:
    inside = part.inside or ("" if found.name else part.path.name)
    return shown("/".join(name for name in (inside, found.name) if name))


def _ignored(part: Input, found: Found) -> Ignored:
    kind = found.ignored or ""
    return Ignored(part.origin, _file(part, found), kind, shown(found.detail), found.size)


def _refuse_duplicates(images: Sequence[ImageRef], option: str, *, is_one: bool) -> None:
    """Refuse two images of one key, which every reader would take for one sample."""
    twice = [(a, b) for a, b in pairwise(images) if a.key == b.key]
    if twice:
        a, b = twice[0]
        places = " and ".join(f"{ref.file} of {ref.origin}" for ref in (a, b))
        named = "" if is_one else f"give one of the inputs a name, as in {option} other=PATH, or "
        raise UsageError(
            f"{option}: {len(twice)} keys occur twice, the first is {a.key!r} ({places}); {named}"
            "rename or remove one of the files: names differ in more than the extension"
        )


def read(ref: ImageRef) -> bytes:
    """Read one image's encoded bytes.

    Raises:
        UnreadableImage: with the reason; `datasets.unusable` says which of them may pass.
        UserError: it is not this image that is at fault: a store is away, credentials have expired,
            or the images were refused one after another.
    """
    try:
        data = _bytes(ref)
    except UnreadableImage:
        raise
    except FileNotFoundError as error:
        raise UnreadableImage("vanished", str(error)) from error
    except Refused as error:
        _refusals.add(error)
        raise UnreadableImage("unreadable", str(error)) from error
    except Replaced as error:
        _forget_open()
        raise UnreadableImage("changed", str(error)) from error
    except Short as error:
        raise UnreadableImage("damaged_member", str(error)) from error
    except UserError:
        raise
    except MemoryError as error:
        raise UnreadableImage("out_of_memory", f"{ref.size} bytes") from error
    except OSError as error:
        _forget_open()
        raise UnreadableImage("unreadable", str(error)) from error
    except Exception as error:
        raise UnreadableImage("damaged_member", f"{type(error).__name__}: {error}") from error
    _refusals.end()
    if len(data) != ref.size:
        reason = "damaged_member" if ref.offset or ref.member else "changed"
        said = f"{ref.path}: {ref.key} has {len(data)} bytes, {ref.size} were listed"
        raise UnreadableImage(reason, said)
    return data


def _bytes(ref: ImageRef) -> bytes:
    path = path_from(ref.path)
    if ref.member is not None:
        return _open_zip(ref.path, ref.stamp).read(ref.offset)
    if ref.seek_index is None:
        return read_range(path, ref.offset, ref.size) if ref.offset else path.read_bytes()
    access = path_from(ref.seek_index)
    if access.suffix != COPY:
        return _open_gzip(ref.path, ref.seek_index).read(ref.size, ref.offset)
    copy = copy_here(path, access, ref.stamp)
    if copy is None:
        raise UnreadableImage("changed", f"{ref.path}: was replaced after it was listed")
    return read_range(copy, ref.offset, ref.size)


@lru_cache(maxsize=OPEN_ARCHIVES)
def _open_gzip(path: str, index: str) -> Gzip:
    return Gzip(path_from(path), path_from(index))


@lru_cache(maxsize=OPEN_ARCHIVES)
def _open_zip(path: str, stamp: int) -> Zip:
    return Zip(path_from(path))


def _forget_open() -> None:
    """Close what is open: an archive that failed once gives errors for ever."""
    _open_gzip.cache_clear()
    _open_zip.cache_clear()


class _Refusals:
    """Counts the images that were refused one after another, whichever threads read them."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    def add(self, error: Refused) -> None:
        """Count one.

        Raises:
            UserError: there were `MOST_REFUSED`.
        """
        with self._lock:
            self._count += 1
            count = self._count
        if count >= MOST_REFUSED:
            raise UserError(
                f"{error}. So it was with {count} images one after another, and no more are tried; "
                "run the same command again once they may be read, or give inputs without them"
            ) from error

    def end(self) -> None:
        """Begin to count anew, because an image was read."""
        with self._lock:
            self._count = 0


_refusals = _Refusals()


def ignored_table(listing: Listing) -> pa.Table:
    """Tabulate what is no image: the rows of `ignored.parquet`."""
    rows = [dataclasses.asdict(thing) for thing in listing.ignored]
    text = [(name, pa.string()) for name in ("origin", "file", "kind", "detail")]
    return pa.Table.from_pylist(rows, pa.schema([*text, ("bytes", pa.int64())]))


def input_digest(pairs: Iterable[tuple[str, str]]) -> str:
    """Hash the input by content: sorted (key, SHA-256 of the source bytes) pairs."""
    return digest(sorted([key, sha] for key, sha in pairs))
