"""The leakage guard: images of other sets, of which a curation must take no copy."""

import hashlib
import sys
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datasets.decoding import decode
from datasets.fetching import Fetch, read_ahead
from datasets.fingerprint import near, perceptual_hash, unpacked
from datasets.inputs import Input, parsed
from datasets.shards import parquet_bytes, read_manifest, read_table
from datasets.sources import ImageRef
from datasets.unusable import UnreadableImage, UnusableImage
from infra.ahead import map_ahead
from infra.config import digest
from infra.errors import UsageError, UserError
from infra.paths import AnyPath, write_bytes
from pipelines.jobs.inputs import listed
from pipelines.jobs.progress import progress

OPTION = "--exclude"
HASHES = ["source_sha256", "source_phash"]
EXCLUDED = pa.schema([("name", pa.string()), *((name, pa.string()) for name in HASHES)])
"""An image of another set: its name (see `_named`), SHA-256, perceptual hash (null without)."""
THREADS = 4  # decoding releases the interpreter


def read_excluded(items: Sequence[str], cache: AnyPath) -> pa.Table:
    """Read the hashes of the images of sets, and hash the images of folders and archives.

    Args:
        items: as given to ``--exclude``: image sets, folders, archives, each optionally
            ``NAME=PATH``.
        cache: folder for the hashes of folders and archives, and for their seek indexes.

    Returns:
        Rows of `EXCLUDED`, sorted by name.

    Raises:
        UsageError: nothing is there, or a set without hashes.
        UserError: an image that cannot be read, and so cannot be guarded against.
    """
    tables = [EXCLUDED.empty_table(), *(_read_one(item, cache) for item in items)]
    return pa.concat_tables(tables).sort_by("name")


def _read_one(text: str, cache: AnyPath) -> pa.Table:
    item = parsed(text, OPTION)
    if item.path.is_dir() and read_manifest(item.path) is not None:
        return _named(_of_set(item.path), item)
    listing = listed([text], cache, OPTION)
    listing.prepare()
    refs = listing.images
    kept = cache / f"hashes-{digest([[ref.key, ref.size, ref.stamp] for ref in refs])[:16]}"
    if not kept.exists():
        write_bytes(kept, parquet_bytes(_hashed(refs, item.path)))
    table = read_table(kept)
    by_bytes = pc.sum(pc.is_null(table["source_phash"])).as_py()
    sys.stdout.write(
        f"exclude {text}: {len(refs):,} images, {by_bytes} of them by SHA-256 only; "
        f"{listing.losses()} damaged places\n"
    )
    return table if item.prefix else _named(table, item)  # a listing's keys begin with the NAME


def _named(table: pa.Table, item: Input) -> pa.Table:
    """Put the NAME of an input, or else the name of its file or folder, before the keys."""
    names = [f"{item.prefix or item.path.name}/{key}" for key in table["name"].to_pylist()]
    return table.set_column(0, EXCLUDED.field("name"), pa.array(names, pa.string()))


def _of_set(folder: AnyPath) -> pa.Table:
    try:
        table = read_table(folder / "scores.parquet")
    except FileNotFoundError:
        table = pa.table({})
    lacking = set(HASHES) - set(table.column_names)
    if lacking:
        raise UsageError(
            f"--exclude {folder}: a set whose images have no {' or '.join(sorted(lacking))}; "
            "curate it again, or give the folder of its photographs"
        )
    kept = table.filter(pc.is_valid(table["shard"]))
    images = kept.group_by("source").aggregate([(name, "min") for name in HASHES])
    return images.rename_columns(EXCLUDED.names).cast(EXCLUDED)


def _hashed(refs: Sequence[ImageRef], path: AnyPath) -> pa.Table:
    """Read and decode images; one that cannot be decoded is known by its bytes alone."""

    def row(image: tuple[ImageRef, Fetch]) -> dict[str, Any]:
        ref, fetch = image
        try:
            data = fetch()
            phash = perceptual_hash(decode(data))
        except UnreadableImage as error:
            raise UserError(
                f"--exclude {path}: {ref.key} cannot be read ({error}), so its copies would not be "
                "found; mend that, or give the images without it"
            ) from error
        except UnusableImage:
            phash = None
        sha = hashlib.sha256(data).hexdigest()
        return {"name": ref.key, "source_sha256": sha, "source_phash": phash}

    rows = []
    with progress("exclude", len(refs)) as advance:
        for hashed in map_ahead(row, read_ahead(refs), threads=THREADS):
            rows.append(hashed)
            advance(1)
    return pa.Table.from_pylist(rows, schema=EXCLUDED)


def matches(candidates: pa.Table, excluded: pa.Table) -> dict[str, str]:
    """Find the images that are copies of excluded ones.

    Args:
        candidates: rows of `CANDIDATE`.
        excluded: rows of `EXCLUDED`.

    Returns:
        The name of the excluded image, by the key of its copy.
    """
    same = dict(
        zip(*(excluded[name].to_pylist()[::-1] for name in (HASHES[0], "name")), strict=True)
    )
    hashed = excluded.filter(pc.is_valid(excluded["source_phash"]))
    hashes, names = unpacked(hashed["source_phash"].to_pylist()), hashed["name"].to_pylist()
    found: dict[str, str] = {}
    images = candidates.group_by("source").aggregate([(name, "min") for name in HASHES])
    for source, sha, phash in zip(*(column.to_pylist() for column in images.columns), strict=True):
        if sha in same:
            found[source] = same[sha]
        elif phash and (alike := near(unpacked([phash])[0], hashes)):
            found[source] = names[alike[0]]
    return found
