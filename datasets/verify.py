"""Verification of a set: its manifest, index, tables and samples are compared with each other."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from datasets.sets import shards_folder
from datasets.shards import (
    INDEX,
    MANIFEST,
    file_entries,
    read_manifest,
    read_table,
    shard_sizes,
)
from infra.config import canonical_json, flat, from_dict
from infra.errors import UserError
from infra.folders.contract import Missing, Unavailable
from infra.paths import AnyPath, fetched, glob, sha256, size


def problems(folder: AnyPath) -> Generator[str, None, bool]:
    """Yield one sentence for everything in an image set that is not as its own records say.

    Returns whether every file is as the manifest says.

    Checked, besides `set_problems`: every key is unique; every PNG decodes to the size and hash its
    JSON names; the samples are exactly the kept rows of scores.parquet; no source image, and no
    group of copies, is in two splits.
    """
    inspected = Inspected()
    yield from set_problems(folder, _sample, inspected)
    if inspected.is_whole:
        yield from guarded("scores.parquet", _scores(folder, inspected))
    return inspected.is_whole


def damaged(folder: AnyPath, manifest: Mapping[str, Any]) -> list[str]:
    """List the files of a manifest that are absent or have another length or SHA-256."""
    return list(_damages(folder, manifest))


def _damages(folder: AnyPath, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Say what is wrong with each file of a manifest that is not as it says, by its name."""
    tars, shards = shards_folder(folder), shard_sizes(manifest)
    found = {
        name: _damage((tars if name in shards else folder) / name, entry)
        for name, entry in file_entries(manifest).items()
    }
    return {name: wrong for name, wrong in found.items() if wrong}


def claim_problems(said: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence for every value of a manifest that is not as expected, or not expected.

    Its entries of shards and files are compared with the files themselves, by `damaged`.
    """
    said = {name: value for name, value in said.items() if name not in ("shards", "files")}
    yield from (f"{MANIFEST}: {name} is no claim of a set" for name in said.keys() - expected)
    yield from (f"{MANIFEST}: {name} is missing" for name in expected.keys() - said)
    mine, theirs = flat(said), flat(expected)
    for name in sorted(mine.keys() | theirs.keys()):
        one, other = mine.get(name), theirs.get(name)
        if canonical_json(one) != canonical_json(other):
            yield f"{MANIFEST}: {name} is {one!r}, found {other!r}"


def _damage(path: AnyPath, entry: Mapping[str, Any]) -> str:
    """Say what is wrong with a file, by its entry in the manifest; nothing if it is whole."""
    if (found_size := size(path)) is None:
        return "missing"
    if found_size != entry["bytes"]:
        return f"{found_size} bytes, the manifest says {entry['bytes']}"
    if (found := sha256(path)) != entry["sha256"]:
        return f"SHA-256 {found[:12]}, the manifest says {entry['sha256'][:12]}"
    return ""


@dataclass(slots=True)
class Inspected:
    """What was found in the shards that have been read so far."""

    members: list[tuple[str, str, str, int, int, int | None]] = field(default_factory=list)
    """Shard, key, extension, offset, size and CRC-32 of every member, in the order of the index."""
    shard_of: dict[str, str] = field(default_factory=dict)
    """Name of the first shard that holds a key, by key."""
    split_of: dict[str, str] = field(default_factory=dict)
    """Split of every source image."""
    is_whole: bool = False
    """Whether every file has the length and SHA-256 that the manifest says."""


Inspect = Callable[[Path, str, dict[str, bytes], Inspected], Iterator[str]]
"""A function of a shard, a key, its members' contents by extension, and what was inspected before;
it yields what is wrong with the sample, and adds the sample to what was inspected."""


def set_problems(folder: AnyPath, inspect: Inspect, inspected: Inspected) -> Iterator[str]:
    """Yield one sentence for everything that is wrong with a set of any kind.

    Checked: the manifest exists; every file has its length and SHA-256, no shard is missing, extra
    or wrongly numbered; tars are USTAR with zero times and ids; a sample's members are adjacent;
    the index has the place of every member; totals add up; and each sample passes ``inspect``.
    Tables are compared with each other where all files are whole. Damaged bytes end in a sentence.
    """
    manifest = yield from readable_manifest(folder)
    if manifest is None:
        return
    wrong = _damages(folder, {**manifest, "shards": []})
    yield from (f"{name}: {what}" for name, what in wrong.items())
    yield from _names(folder, manifest)
    inspected.is_whole = not wrong
    for entry in manifest["shards"]:
        yield from _whole_shard(shards_folder(folder) / entry["name"], entry, inspect, inspected)
    if inspected.is_whole:
        yield from guarded(INDEX, _index(folder, inspected))
        yield from _totals(manifest, inspected)


@dataclass(frozen=True, kw_only=True)
class _FileEntry:
    """What a manifest says of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _ShardEntry(_FileEntry):
    """What a manifest says of a shard."""

    name: str
    split: str
    samples: int


@dataclass(frozen=True, kw_only=True)
class _Form:
    """The part of a manifest that all kinds of sets have."""

    shards: tuple[_ShardEntry, ...]
    files: dict[str, _FileEntry]
    totals: dict[str, int]


def readable_manifest(folder: AnyPath) -> Generator[str, None, dict[str, Any] | None]:
    """Return the manifest of a set; or yield what is wrong with it, and return None."""
    try:
        manifest = read_manifest(folder)
        if manifest is not None:
            form = {field.name: manifest.get(field.name) for field in fields(_Form)}
            from_dict(_Form, form, MANIFEST)
    except Unavailable:
        raise
    except UserError as error:
        yield str(error)
        return None
    if manifest is None:
        yield f"{folder}: no {MANIFEST}: not a complete set; run the command that makes it again"
    return manifest


def repeated_claims(
    table: pa.Table, name: str, fields: Sequence[str]
) -> Generator[str, None, dict[str, Any] | None]:
    """Return what the metadata of a table repeat of the manifest; or yield that they do not.

    Args:
        table: of the set.
        name: of its file.
        fields: of the manifest that it should repeat.
    """
    found = (table.schema.metadata or {}).get(b"manifest")
    if found is not None:
        claims: dict[str, Any] = json.loads(found)
        return claims
    yield (
        f"{name}: does not repeat what {MANIFEST} claims, as sets of an earlier version do not; "
        f"{', '.join(fields)} cannot be checked"
    )
    return None


def guarded(where: str, found: Iterator[str]) -> Iterator[str]:
    """Yield problems; and a sentence for whatever damaged bytes raise in the search for them.

    Raises:
        Unavailable: the store of the set cannot be asked, which is no problem of the set.
    """
    try:
        yield from found
    except Unavailable:
        raise
    except Exception as error:  # decoders of tar, parquet, PNG and JSON have no common one
        yield f"{where}: damaged, or not what it should be ({type(error).__name__}: {error})"


def _names(folder: AnyPath, manifest: dict[str, Any]) -> Iterator[str]:
    named = {entry["name"] for entry in manifest["shards"]}
    for path in glob(folder, "*.tar"):
        if path.name not in named:
            yield f"{path.name}: a shard that the manifest does not name"
    counters: dict[str, int] = {}
    for entry in manifest["shards"]:
        number = counters.get(entry["split"], 0)
        if entry["name"] != f"{entry['split']}-{number:06d}.tar":
            yield f"{entry['name']}: out of number, expected {entry['split']}-{number:06d}.tar"
        counters[entry["split"]] = number + 1


def _whole_shard(
    path: AnyPath, entry: dict[str, Any], inspect: Inspect, inspected: Inspected
) -> Iterator[str]:
    """Compare a shard with its entry in the manifest, and inspect its samples.

    One in a bucket is fetched once for both, to the folder for temporary files.
    """
    try:
        with fetched(path) as local:
            wrong = _damage(local, entry)
            inspected.is_whole &= not wrong
            if wrong:
                yield f"{path.name}: {wrong}"
            if local.exists():
                yield from guarded(path.name, _shard(local, entry, inspect, inspected))
    except Unavailable:
        raise
    except UserError as error:
        inspected.is_whole = False
        yield f"{path.name}: {'missing' if isinstance(error, Missing) else error}"


def _shard(
    path: Path, entry: dict[str, Any], inspect: Inspect, inspected: Inspected
) -> Iterator[str]:
    """Inspect every sample of a tar, one in memory at a time."""
    keys: set[str] = set()
    current, contents = "", dict[str, bytes]()
    try:
        with tarfile.open(path, mode="r:") as tar:
            for info in tar:
                yield from _header(path, info)
                key, _, extension = info.name.partition(".")
                file = tar.extractfile(info)
                if key != current:
                    if current:
                        where = f"{path.name}: {current}"
                        yield from guarded(where, inspect(path, current, contents, inspected))
                    if key in keys:
                        yield f"{path.name}: the members of {key} are not adjacent"
                    keys.add(key)
                    current, contents = key, {}
                if extension in contents:
                    yield f"{path.name}: {info.name} occurs twice"
                content = contents[extension] = b"" if file is None else file.read()
                place = info.offset_data, info.size, zlib.crc32(content)
                inspected.members.append((path.name, key, extension, *place))
        if current:
            where = f"{path.name}: {current}"
            yield from guarded(where, inspect(path, current, contents, inspected))
    except tarfile.TarError as error:
        yield f"{path.name}: not a readable tar ({error})"
    if len(keys) != entry["samples"]:
        yield f"{path.name}: {len(keys)} samples, the manifest says {entry['samples']}"


def _header(path: AnyPath, info: tarfile.TarInfo) -> Iterator[str]:
    if info.pax_headers or info.mtime or info.uid or info.gid or info.uname or info.gname:
        yield f"{path.name}: {info.name} is not plain USTAR with zero time and ids"


def _sample(
    path: AnyPath, key: str, members: dict[str, bytes], inspected: Inspected
) -> Iterator[str]:
    """Inspect a sample of an image set."""
    where = f"{path.name}: {key}"
    if key in inspected.shard_of:
        yield f"{path.name}: key {key} is also in {inspected.shard_of[key]}"
    inspected.shard_of[key] = path.name
    if members.keys() != {"png", "json"}:
        yield f"{where} has members {sorted(members)}, expected json, png"
        return
    try:
        label = json.loads(members["json"])
        with Image.open(io.BytesIO(members["png"]), formats=["PNG"]) as image:
            image.load()
            size, mode = image.size, image.mode
    except (KeyError, ValueError, OSError, SyntaxError) as error:
        yield f"{where}: unreadable ({error})"
        return
    if label["key"] != key:
        yield f"{where}: its JSON says key {label['key']}"
    if (mode, *size) != ("RGB", label["width"], label["height"]):
        yield f"{where}: {mode} {size}, its JSON says RGB {label['width']} x {label['height']}"
    if hashlib.sha256(members["png"]).hexdigest() != label["sha256"]:
        yield f"{where}: the PNG's SHA-256 differs from its JSON's"
    split = path.name.rpartition("-")[0]
    other = inspected.split_of.setdefault(label["source"], split)
    if other != split:
        yield f"{where}: source image {label['source']} is in the splits {other} and {split}"


def _index(folder: AnyPath, inspected: Inspected) -> Iterator[str]:
    index = folder / INDEX
    if index.exists():
        rows = read_table(index).to_pylist()
        listed = [(*row.values(), *[None] * (6 - len(row))) for row in rows]
        found = [  # sets of an earlier format have no checksums
            member if row[-1] is not None else (*member[:-1], None)
            for row, member in zip(listed, inspected.members, strict=False)
        ]
        if listed != found or len(listed) != len(inspected.members):
            wrong = next((a for a, b in zip(listed, found, strict=True) if a != b), "its length")
            yield f"{INDEX}: differs from the shards, first at {wrong}"


def _scores(folder: AnyPath, inspected: Inspected) -> Iterator[str]:
    scores = folder / "scores.parquet"
    if scores.exists():
        rows = read_table(scores, columns=["key", "shard", "group", "split"]).to_pylist()
        kept = {row["key"]: row["shard"] for row in rows if row["shard"] is not None}
        for key in sorted(kept.keys() | inspected.shard_of.keys()):
            if kept.get(key) != inspected.shard_of.get(key):
                yield (
                    f"{key}: scores.parquet places it in {kept.get(key)}, "
                    f"it is in {inspected.shard_of.get(key)}"
                )
        split_of: dict[str, str] = {}
        for row in rows:
            if row["split"] and split_of.setdefault(row["group"], row["split"]) != row["split"]:
                yield f"{row['key']}: copies of {row['group']} are in two splits"


def _totals(manifest: dict[str, Any], inspected: Inspected) -> Iterator[str]:
    totals = manifest["totals"]
    found = {
        "samples": len(inspected.shard_of),
        "shards": len(manifest["shards"]),
        "bytes": sum(entry["bytes"] for entry in manifest["shards"]),
    }
    for name, value in found.items():
        if totals.get(name) != value:
            yield f"{MANIFEST}: totals.{name} is {totals.get(name)}, found {value}"
