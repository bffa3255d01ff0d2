"""Verify a set: recompute every claim of its manifest, index, tables and samples."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from datasets.shards import INDEX, MANIFEST, read_manifest
from infra.storage import sha256


def problems(folder: Path) -> Iterator[str]:
    """Yield one sentence for everything that is not as the set's own records say.

    Checked: the manifest exists; every file has its length and SHA-256, no shard is missing, extra
    or out of number; tars are USTAR with zero times and ids; every key is unique and its members
    adjacent; the index gives the bytes of every member; every PNG decodes to the size and hash its
    JSON names; the samples are exactly the kept rows of scores.parquet; no source image is in two
    splits; totals add up.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        yield f"{folder}: no {MANIFEST}: not a complete set; run the command that makes it again"
        return
    yield from _files(folder, manifest)
    seen = _Seen()
    for entry in manifest["shards"]:
        path = folder / entry["name"]
        if path.exists():
            yield from _shard(path, entry, seen)
    yield from _tables(folder, seen)
    yield from _totals(manifest, seen)


class _Seen:
    """What was found in the shards."""

    def __init__(self) -> None:
        self.members: list[tuple[str, str, str, int, int]] = []
        self.shard_of: dict[str, str] = {}
        self.split_of: dict[str, str] = {}


def _files(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    named = {entry["name"]: entry for entry in manifest["shards"]}
    for name, entry in {**named, **manifest["files"]}.items():
        path = folder / name
        if not path.exists():
            yield f"{name}: missing"
        elif (size := path.stat().st_size) != entry["bytes"]:
            yield f"{name}: {size} bytes, the manifest says {entry['bytes']}"
        elif (found := sha256(path)) != entry["sha256"]:
            yield f"{name}: SHA-256 {found}, the manifest says {entry['sha256']}"
    for path in sorted(folder.glob("*.tar")):
        if path.name not in named:
            yield f"{path.name}: a shard that the manifest does not name"
    counters: dict[str, int] = {}
    for entry in manifest["shards"]:
        number = counters.get(entry["split"], 0)
        if entry["name"] != f"{entry['split']}-{number:06d}.tar":
            yield f"{entry['name']}: out of number, expected {entry['split']}-{number:06d}.tar"
        counters[entry["split"]] = number + 1


def _shard(path: Path, entry: dict[str, Any], seen: _Seen) -> Iterator[str]:
    samples: list[str] = []
    contents: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                yield from _header(path, info)
                key, _, extension = info.name.partition(".")
                file = tar.extractfile(info)
                data = b"" if file is None else file.read()
                if key not in contents:
                    samples.append(key)
                elif samples[-1] != key:
                    yield f"{path.name}: the members of {key} are not adjacent"
                if extension in contents.setdefault(key, {}):
                    yield f"{path.name}: {info.name} occurs twice"
                contents[key][extension] = data
                seen.members.append((path.name, key, extension, info.offset_data, info.size))
                if len(contents[key]) == 2:
                    yield from _sample(path, key, contents[key], seen)
                    contents[key] = dict.fromkeys(contents[key], b"")
    except tarfile.TarError as error:
        yield f"{path.name}: not a readable tar ({error})"
    for key in samples:
        if contents[key].keys() != {"png", "json"}:
            yield f"{path.name}: {key} has members {sorted(contents[key])}, expected json, png"
        if key in seen.shard_of:
            yield f"{path.name}: key {key} is also in {seen.shard_of[key]}"
        seen.shard_of[key] = path.name
    if len(samples) != entry["samples"]:
        yield f"{path.name}: {len(samples)} samples, the manifest says {entry['samples']}"


def _header(path: Path, info: tarfile.TarInfo) -> Iterator[str]:
    if info.pax_headers or info.mtime or info.uid or info.gid or info.uname or info.gname:
        yield f"{path.name}: {info.name} is not plain USTAR with zero time and ids"


def _sample(path: Path, key: str, members: dict[str, bytes], seen: _Seen) -> Iterator[str]:
    where = f"{path.name}: {key}"
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
    other = seen.split_of.setdefault(label["source"], split)
    if other != split:
        yield f"{where}: source image {label['source']} is in the splits {other} and {split}"


def _tables(folder: Path, seen: _Seen) -> Iterator[str]:
    index = folder / INDEX
    if index.exists():
        rows = pq.read_table(index).to_pylist()
        listed = [tuple(row.values()) for row in rows]
        if listed != seen.members:
            wrong = next(
                (a for a, b in zip(listed, seen.members, strict=False) if a != b), "its length"
            )
            yield f"{INDEX}: differs from the shards, first at {wrong}"
    scores = folder / "scores.parquet"
    if scores.exists():
        rows = pq.read_table(scores, columns=["key", "shard"]).to_pylist()
        kept = {row["key"]: row["shard"] for row in rows if row["shard"] is not None}
        for key in sorted(kept.keys() | seen.shard_of.keys()):
            if kept.get(key) != seen.shard_of.get(key):
                yield (
                    f"{key}: scores.parquet places it in {kept.get(key)}, "
                    f"it is in {seen.shard_of.get(key)}"
                )


def _totals(manifest: dict[str, Any], seen: _Seen) -> Iterator[str]:
    totals = manifest["totals"]
    found = {
        "samples": len(seen.shard_of),
        "shards": len(manifest["shards"]),
        "bytes": sum(entry["bytes"] for entry in manifest["shards"]),
    }
    for name, value in found.items():
        if totals[name] != value:
            yield f"{MANIFEST}: totals.{name} is {totals[name]}, found {value}"
