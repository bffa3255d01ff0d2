"""Earlier versions of a set that grew in place: each is a set of its own, in `versions/DIGEST`.

Growing adds shards and changes none. So a version is its manifest, its tables, and links to those
of the grown set's shards that it had: whatever takes the folder of a set takes that of a version.
In a bucket, which has no links, the readers of this project look for its shards with the set's.
"""

import shutil
from collections.abc import Iterator

from datasets.sets import VERSIONS, PublishedSet, claimed_set
from datasets.shards import MANIFEST
from infra.paths import AnyPath, fetched, glob, link, remove_tree, written_by_name

SHORT = 12  # digits of a digest that name a version


def keep_version(opened: PublishedSet) -> None:
    """Keep a set, which is about to grow, as a version. Killed, the same call finishes the work."""
    folder = opened.folder / VERSIONS / opened.digest[:SHORT]
    folder.mkdir(parents=True, exist_ok=True)
    for entry in opened.manifest["shards"]:
        link(folder / entry["name"], f"../../{entry['name']}")
    for name in [*opened.manifest["files"], MANIFEST]:  # without its manifest it is no set
        with fetched(opened.folder / name) as kept, written_by_name(folder / name) as copy:
            shutil.copyfile(kept, copy)


def forget_versions(folder: AnyPath) -> None:
    """Remove the versions of a set whose shards are about to be replaced."""
    remove_tree(folder / VERSIONS)


def versions(opened: PublishedSet) -> Iterator[PublishedSet]:
    """Yield the earlier versions of a set that are kept."""
    for manifest in glob(opened.folder, f"{VERSIONS}/*/{MANIFEST}"):
        yield claimed_set(manifest.parent, opened.kind)
