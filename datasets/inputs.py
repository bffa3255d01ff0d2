"""An input as a user gives it, and the files and archives that it stands for."""

import dataclasses
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datasets import folders
from datasets.archives import archive
from datasets.archives.archive import Archive
from datasets.archives.found import Found
from datasets.names import IMAGE_EXTENSIONS, NAME_RULE, is_valid_prefix, shown
from infra.errors import UsageError
from infra.folders.opening import is_uri
from infra.paths import AnyPath, path_of
from infra.storage import explained


@dataclass(frozen=True, slots=True)
class Input:
    """One input, or one archive inside an input that is a folder."""

    text: str
    """As the user gave it."""
    prefix: str
    """NAME of ``NAME=PATH``; empty without one."""
    path: AnyPath
    origin: str
    """The NAME, or else the base name of the path, as text."""
    inside: str = ""
    """Path of the archive inside the folder."""
    option: str = "--input"
    """That named it, for the messages."""


def parsed(text: str, option: str = "--input") -> Input:
    """Tell ``NAME=PATH`` from a path with "=" in it, which is a path if it exists as one."""
    name, equals, rest = text.partition("=")
    is_name = not is_uri(text) and equals and is_valid_prefix(name)
    if is_name and not is_uri(rest):
        is_name = not path_of(text).exists()
    prefix, place = (name, rest) if is_name else ("", text)
    path = _package_file(place, option) if place.startswith("pkg:") else path_of(place)
    return Input(text, prefix, path, shown(prefix or path.resolve().name), option=option)


def _package_file(text: str, option: str) -> Path:
    package, _, rest = text.removeprefix("pkg:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"{option} {text}: package {package} is not installed; pip install it")
    return Path(spec.submodule_search_locations[0], rest)


Thing = tuple[Found, int] | Archive
"""A file with its stamp (`datasets.folders`), or an archive."""


def met(item: Input, kept: AnyPath) -> Iterator[tuple[Input, Thing]]:
    """Yield the files and the archives of an input."""
    path = item.path
    try:
        status = folders.status(path)
        if status.is_folder:
            yield from _below(item, kept)
            return
    except FileNotFoundError as error:
        hint = f"; {item.text.partition('=')[0]!r} is no NAME: {NAME_RULE}"
        raise UsageError(
            f"{item.option} {item.text}: no such file or folder; check the path"
            f"{hint if '=' in item.text and not item.prefix else ''}"
        ) from error
    except OSError as error:
        raise UsageError(f"{item.option} {explained(error, str(path))}") from error
    if archive.extension(path.name):
        yield item, Archive(path, kept, status)
    elif path.suffix.lower() in IMAGE_EXTENSIONS:
        found = Found(path.name, size=status.size)
        yield dataclasses.replace(item, path=path.parent), (found, status.stamp)
    else:
        raise UsageError(
            f"{item.option} {item.text}: neither a folder, an image nor an archive that can be "
            f"read in place ({', '.join(archive.EXTENSIONS)}); repack or unpack it"
        )


def _below(item: Input, kept: AnyPath) -> Iterator[tuple[Input, Thing]]:
    """Yield what lies below a folder, its archives as inputs of their own."""
    for found, stamp in folders.contents(item.path):
        if found.ignored or is_hidden(found.name) or not archive.extension(found.name):
            yield item, (found, stamp)
        else:
            part = dataclasses.replace(item, path=item.path / found.name, inside=found.name)
            yield part, Archive(part.path, kept, folders.Status(False, found.size, stamp))


def is_hidden(name: str) -> bool:
    """Tell whether a file or a folder above it is hidden, or what macOS leaves in archives."""
    parts = PurePosixPath(name).parts
    return any((p.startswith(".") and p != "..") or p == "__MACOSX" for p in parts)
