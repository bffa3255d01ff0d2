"""What is met in an input: a file with its place, or something that is ignored, with its kind."""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

IGNORED = {
    "other_file": "is no image by its extension",
    "hidden": "begins with a dot, or lies in a folder that does, or in __MACOSX",
    "damage": "is a place in an archive whose bytes belong to no member that can be read",
    "unreadable_archive": "is an archive inside a folder that cannot be read",
    "unreadable_folder": "is a folder that cannot be listed",
    "nested_archive": "is an archive inside an archive",
    "dangling_link": "is a link whose target is not there, or is not in the archive",
    "repeated_folder": "is a link to a folder that is read under another name",
    "replaced_member": "is a member of an archive that a later one of its name replaces",
    "special_file": "is a device, a pipe or a socket",
    "sparse_member": "is a file whose holes are left out of its tar",
    "impossible_name": "is an object of a bucket whose key no file can have",
}
"""What is no image, by kind: what a thing of that kind is."""
LOSSES = frozenset({"damage", "unreadable_archive", "unreadable_folder", "impossible_name"})
"""Kinds that may hide images; each thing of them counts as one broken image."""
MAX_LINKS = 40  # as Linux follows them


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that is met in an input."""

    name: str
    """Inside the input; lone surrogates stand for bytes that are no UTF-8."""
    offset: int = 0
    """First byte inside the (decompressed) tar, or of the header inside a .zip; else 0."""
    size: int = 0
    """Length in bytes."""
    ignored: str | None = None
    """One of `IGNORED`; None for a file whose bytes can be read."""
    detail: str = ""
    """What else there is to say of something ignored."""


def resolved(
    files: Iterable[Found], links: Mapping[str, str], folders: Iterable[str]
) -> list[Found]:
    """Resolve the links of an archive, and drop what a later member of the same name replaces.

    Args:
        files: what was found, in the order of the archive.
        links: name of a link -> name of its target, from the root of the archive.
        folders: names of the archive's folders that are named by themselves.

    Returns:
        The files, and for each link a file with its target's place, or something ignored.
    """
    files = list(files)
    last = {posixpath.normpath(file.name): file for file in files if not file.ignored}
    kept = [_or_replaced(file, last) for file in files]
    known = {posixpath.normpath(name) for name in folders} if links else set()
    for name in last if links else ():
        while name := posixpath.dirname(name):
            if name == "/" or name in known:
                break
            known.add(name)
    return kept + [_target(name, links, last, known) for name in links]


def _or_replaced(file: Found, last: Mapping[str, Found]) -> Found:
    if file.ignored or last[posixpath.normpath(file.name)] is file:
        return file
    return replace(file, ignored="replaced_member", detail=f"at offset {file.offset}")


def _target(
    name: str, links: Mapping[str, str], files: Mapping[str, Found], folders: set[str]
) -> Found:
    target = links[name]
    hops = {posixpath.normpath(link): to for link, to in links.items()}
    for _ in range(MAX_LINKS):
        place = posixpath.normpath(target)
        if place in files:
            return replace(files[place], name=name)
        if place not in hops:
            break
        target = hops[place]
    kind = "repeated_folder" if posixpath.normpath(target) in folders else "dangling_link"
    return Found(name, ignored=kind, detail=f"a link to {links[name]}")
