"""Earlier versions of a set that grew in place: each is a set of its own, in `versions/DIGEST`.

Growing adds shards and changes none. So a version is its manifest, its tables, and links to those
of the grown set's shards that it had: whatever takes the folder of a set takes that of a version.
"""

from collections.abc import Iterator
from pathlib import Path

from datasets.sets import PublishedSet, claimed_set
from datasets.shards import MANIFEST
from infra.storage import remove_tree, write_bytes

VERSIONS = "versions"
SHORT = 12  # digits of a digest that name a version


def keep_version(opened: PublishedSet) -> None:
    """Keep a set, which is about to grow, as a version. Killed, the same call finishes the work."""
    folder = opened.folder / VERSIONS / opened.digest[:SHORT]
    folder.mkdir(parents=True, exist_ok=True)
    for entry in opened.manifest["shards"]:
        link = folder / entry["name"]
        if not link.is_symlink():
            link.symlink_to(Path("..", "..", entry["name"]))
    for name in [*opened.manifest["files"], MANIFEST]:  # without its manifest it is no set
        write_bytes(folder / name, (opened.folder / name).read_bytes())


def forget_versions(folder: Path) -> None:
    """Remove the versions of a set whose shards are about to be replaced."""
    remove_tree(folder / VERSIONS)


def versions(opened: PublishedSet) -> Iterator[PublishedSet]:
    """Yield the earlier versions of a set that are kept."""
    for manifest in sorted(opened.folder.glob(f"{VERSIONS}/*/{MANIFEST}")):
        yield claimed_set(manifest.parent, opened.kind)
