"""Copies of a photograph among the images: which there are, and which of them is the first.

Two images are *copies* if their files have one SHA-256, or if their perceptual hashes differ in at
most 20 of 256 bits (`datasets.fingerprint.NEAR`). A *group* is what copies of copies connect: it is
never divided between two splits. Being a copy is not transitive, and the ends of a chain may look
different, so an image is only ever dropped for a copy of its own that is kept.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from datasets.fingerprint import near_pairs, unpacked


@dataclass(frozen=True, slots=True)
class Copies:
    """The copies among the images of a curation."""

    content: dict[str, str]
    """What an image shows, by its key: its perceptual hash, or where it has none its SHA-256."""
    near: dict[str, list[str]]
    """The near duplicates of a content, itself included."""
    group: dict[str, str]
    """The first key of an image's group, by the image's key."""

    def dropped(self, sources: Iterable[str]) -> dict[str, str]:
        """Keep the first of some images by key, and each later one that is no copy of a kept one.

        Returns:
            The kept copy of each image that is not kept, by the latter's key.
        """
        kept: dict[str, str] = {}
        copies: dict[str, str] = {}
        for source in sorted(sources):
            content = self.content[source]
            first = next((kept[near] for near in self.near[content] if near in kept), None)
            if first is None:
                kept[content] = source
            else:
                copies[source] = first
        return copies


def find_copies(candidates: pa.Table) -> Copies:
    """Find the copies among the images of candidates.

    Args:
        candidates: rows of `CANDIDATE`. An image that was not read has no hash, and no copies.
    """
    names = ["source", "source_sha256", "source_phash"]
    images = candidates.group_by("source").aggregate([(name, "min") for name in names[1:]])
    rows = sorted(zip(*(column.to_pylist() for column in images.columns), strict=True))
    content = {source: phash or sha or f"unread {source}" for source, sha, phash in rows}
    hashes = sorted({phash for _, _, phash in rows if phash})
    near = {name: [name] for name in content.values()}
    for i, j in near_pairs(unpacked(hashes)):
        near[hashes[i]].append(hashes[j])
        near[hashes[j]].append(hashes[i])
    return Copies(content, near, _groups(content, near))


def _groups(content: dict[str, str], near: dict[str, list[str]]) -> dict[str, str]:
    """Return the first key of the group of each image, by the image's key."""
    first: dict[str, str] = {}
    for source in sorted(content):
        reached = [content[source]]
        while reached:
            name = reached.pop()
            if name not in first:
                first[name] = source
                reached += near[name]
    return {source: first[name] for source, name in content.items()}
