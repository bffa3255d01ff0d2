"""Raw inputs: the images of folders, archives and files, with their keys, in a fixed order.

An input is a folder (searched below), one image file, or an archive as LSDIR is distributed
(`.tar`, `.tar.gz`, `.tgz`, `.zip`), read in place: nothing is unpacked. A `.tar.gz` gets a seek
index (indexed_gzip) when it is first listed, so that any member costs at most a few megabytes of
decompression. `NAME=PATH` puts NAME/ before the keys of that input; `pkg:PACKAGE/PATH` names a file
that an installed package ships.

The key of an image is its path inside the input without the extension, dots turned into underscores
(webdataset ends a key at the first dot). The order and the split of an image depend on its key, not
on its path.
"""

import hashlib
import importlib.util
import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from infra.config import digest
from infra.errors import UsageError
from infra.storage import local_path, written_by_name

IMAGE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
ARCHIVE_EXTENSIONS = (".tar", ".tar.gz", ".tgz", ".zip")
SEEK_POINT_SPACING = 4 << 20  # bytes of decompressed data between two points of a .tar.gz index
OPEN_ARCHIVES = 8  # handles a reading process keeps open


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """The place of one image's bytes, which is sent to workers instead of the bytes."""

    key: str
    """Unique over all inputs; no dot."""
    origin: str
    """The input it came from: the name that the user gave it, or else its base name."""
    path: str
    """The image file, or the archive that holds it."""
    member: str | None = None
    """Name inside a .zip; None for files, and for tars, which are read by offset."""
    offset: int = 0
    """First byte inside the (decompressed) tar; 0 for other files."""
    size: int
    """Length in bytes."""
    stamp: int
    """Modification time of ``path`` in nanoseconds, by which a changed file is noticed."""
    seek_index: str | None = None
    """Path of the seek index of a .tar.gz; None for other files."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All images of all inputs, sorted by key."""

    images: tuple[ImageRef, ...]
    ignored: int
    """Number of files that are not images by their extension."""

    def first(self, count: int | None) -> "Listing":
        """Return the first ``count`` images by key; all of them for None."""
        return Listing(self.images[:count], self.ignored)

    def fingerprint(self) -> str:
        """Identify the input without reading it: keys, sizes and modification times."""
        return digest([[ref.key, ref.size, ref.stamp] for ref in self.images])


def list_images(inputs: Sequence[str], cache: Path) -> Listing:
    """List the images of all inputs, sorted by key.

    Args:
        inputs: folders, image files, archives; each optionally ``NAME=PATH``.
        cache: folder for the seek indexes of compressed archives.

    Raises:
        UsageError: a missing or empty input, a kind of file that cannot be read in place, a broken
            archive, or one key met twice.
    """
    if not inputs:
        raise UsageError("no input; give --input with folders, archives or image files")
    images: list[ImageRef] = []
    ignored = 0
    for item in inputs:
        name, _, rest = item.rpartition("=")
        found, others = _list_input(rest, name, cache)
        if not found:
            raise UsageError(
                f"--input {item}: holds no image ({others} other files); expected "
                f"{', '.join(sorted(IMAGE_EXTENSIONS))}, or an archive of them"
            )
        images += found
        ignored += others
    images.sort(key=lambda ref: ref.key)
    _refuse_duplicates(images)
    return Listing(tuple(images), ignored)


def read(ref: ImageRef) -> bytes:
    """Read one image's encoded bytes.

    Raises:
        OSError: the file is gone, shorter than listed, or unreadable.
    """
    if ref.seek_index is not None:
        archive = _open_gzip(ref.path, ref.seek_index)
        archive.seek(ref.offset)
        data: bytes = archive.read(ref.size)
    elif ref.member is not None:
        data = _open_zip(ref.path, ref.stamp).read(ref.member)
    else:
        with Path(ref.path).open("rb") as file:
            file.seek(ref.offset)
            data = file.read(ref.size)
    if len(data) != ref.size:
        raise OSError(f"{ref.path}: {ref.key} has {len(data)} bytes, {ref.size} were listed")
    return data


def sample_key(path: PurePosixPath | Path, prefix: str = "") -> str:
    """Make a key from a path inside an input: no extension, no dot, no control character."""
    stem = path.with_suffix("").as_posix()
    safe = "".join("_" if c == "." or not c.isprintable() else c for c in stem)
    return f"{prefix}/{safe}" if prefix else safe


def _refuse_duplicates(images: Sequence[ImageRef]) -> None:
    """Refuse two images of one key, which every reader would take for one sample."""
    twice = [(a, b) for a, b in pairwise(images) if a.key == b.key]
    if twice:
        a, b = twice[0]
        raise UsageError(
            f"{len(twice)} keys occur twice, the first is {a.key!r} (in {a.path} and {b.path}); "
            "give one of the inputs a name, as in --input other=PATH, or rename the files"
        )


def _list_input(text: str, name: str, cache: Path) -> tuple[list[ImageRef], int]:
    path = _package_file(text) if text.startswith("pkg:") else local_path(text)
    origin = name or path.resolve().name
    if path.is_dir():
        return _list_folder(path, name, origin)
    if not path.exists():
        raise UsageError(f"--input {text}: no such file or folder; check the path")
    lower = path.name.lower()
    if lower.endswith((".tar.gz", ".tgz")):
        return _list_gzip(path, name, origin, cache)
    if lower.endswith(".tar"):
        with path.open("rb") as file:
            return _list_tar(file, path, name, origin, None)
    if lower.endswith(".zip"):
        return _list_zip(path, name, origin)
    if path.suffix.lower() in IMAGE_EXTENSIONS:
        return [_plain(path, Path(path.name), name, origin, path.stat())], 0
    raise UsageError(
        f"--input {text}: neither a folder, an image nor an archive that can be read in place "
        f"({', '.join(ARCHIVE_EXTENSIONS)}); repack or unpack it"
    )


def _package_file(text: str) -> Path:
    package, _, rest = text.removeprefix("pkg:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"--input {text}: package {package} is not installed; pip install it")
    return Path(spec.submodule_search_locations[0], rest)


def _plain(path: Path, inside: Path, prefix: str, origin: str, stat: os.stat_result) -> ImageRef:
    return ImageRef(
        key=sample_key(inside, prefix),
        origin=origin,
        path=str(path.absolute()),
        size=stat.st_size,
        stamp=stat.st_mtime_ns,
    )


def _list_folder(root: Path, prefix: str, origin: str) -> tuple[list[ImageRef], int]:
    images = []
    ignored = 0
    for path, stat in _walk(root, set()):
        if _is_image(path.name):
            images.append(_plain(path, path.relative_to(root), prefix, origin, stat))
        else:
            ignored += 1
    return images, ignored


def _walk(folder: Path, visited: set[tuple[int, int]]) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the files below a folder, following symbolic links but no folder twice."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in visited:
        return
    visited.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), visited)
            elif entry.is_file():
                yield Path(entry.path), entry.stat()


def _is_image(name: str) -> bool:
    """Tell images by extension; what they really hold is found out when they are decoded."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in IMAGE_EXTENSIONS and not hidden


def _list_tar(
    file: Any, path: Path, prefix: str, origin: str, seek_index: str | None
) -> tuple[list[ImageRef], int]:
    images = []
    ignored = 0
    stamp = path.stat().st_mtime_ns
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if not member.isreg():
                    continue
                if not _is_image(member.name):
                    ignored += 1
                    continue
                images.append(
                    ImageRef(
                        key=sample_key(PurePosixPath(member.name), prefix),
                        origin=origin,
                        path=str(path.absolute()),
                        offset=member.offset_data,
                        size=member.size,
                        stamp=stamp,
                        seek_index=seek_index,
                    )
                )
    except (tarfile.TarError, OSError, EOFError) as error:
        raise _broken(path, error) from error
    return images, ignored


def _broken(path: Path, error: Exception) -> UsageError:
    return UsageError(f"--input {path}: a broken archive ({error}); download or pack it again")


def _list_zip(path: Path, prefix: str, origin: str) -> tuple[list[ImageRef], int]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise _broken(path, error) from error
    stamp = path.stat().st_mtime_ns
    images = [
        ImageRef(
            key=sample_key(PurePosixPath(info.filename), prefix),
            origin=origin,
            path=str(path.absolute()),
            member=info.filename,
            size=info.file_size,
            stamp=stamp,
        )
        for info in members
        if _is_image(info.filename)
    ]
    return images, len(members) - len(images)


def _list_gzip(path: Path, prefix: str, origin: str, cache: Path) -> tuple[list[ImageRef], int]:
    """List a .tar.gz, building its seek index unless one for this very file is at hand."""
    import indexed_gzip

    status = path.stat()
    identity = f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}"
    index = cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.gzidx"
    try:
        with indexed_gzip.IndexedGzipFile(str(path), spacing=SEEK_POINT_SPACING) as file:
            if index.exists():
                file.import_index(str(index))
            else:
                file.build_full_index()
                with written_by_name(index) as target:
                    file.export_index(str(target))
            return _list_tar(file, path, prefix, origin, str(index))
    except indexed_gzip.ZranError as error:
        raise _broken(path, error) from error


@lru_cache(maxsize=OPEN_ARCHIVES)
def _open_gzip(path: str, index: str) -> Any:
    import indexed_gzip

    return indexed_gzip.IndexedGzipFile(path, index_file=index)


@lru_cache(maxsize=OPEN_ARCHIVES)
def _open_zip(path: str, stamp: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def input_digest(pairs: Iterable[tuple[str, str]]) -> str:
    """Hash the input by content: sorted (key, SHA-256 of the source bytes) pairs."""
    return digest(sorted([key, sha] for key, sha in pairs))
