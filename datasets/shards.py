"""Shards: how samples are written as tars with a manifest and an index, and published as a set.

A set is a folder of `SPLIT-000000.tar` files, `index.parquet` (the byte range of every member),
`manifest.json` (written last: without it there is no set) and whatever tables the program adds.
Tars are USTAR with zero times and ids and with the members of a sample side by side, so webdataset
reads them and equal samples give equal bytes. A new set is prepared in a staging folder and
published by renaming its files.
"""

import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.config import pretty_json
from infra.errors import UserError
from infra.paths import (
    AnyPath,
    atomic_file,
    fetched,
    glob,
    has_size,
    move,
    move_all,
    opened,
    read_if_there,
    remove_tree,
    sha256,
    size,
    sizes,
    write_bytes,
)

MANIFEST = "manifest.json"
INDEX = "index.parquet"
BLOCK = tarfile.BLOCKSIZE
END_OF_ARCHIVE = bytes(2 * BLOCK)
USTAR_LIMITS = "a tar holds names of at most 100 bytes after a '/', and 155 before it"


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a sample inside a shard."""

    key: str
    extension: str
    offset: int
    """First byte of the content, not of the header."""
    size: int
    crc32: int | None = None
    """CRC-32 of the content, as zlib computes it; None where an earlier version wrote the shard."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A finished tar and the places of its members."""

    name: str
    samples: int
    bytes: int
    sha256: str
    members: tuple[Member, ...]

    def entry(self) -> dict[str, Any]:
        """Return the shard's line in the manifest."""
        return {
            "name": self.name,
            "split": self.name.rpartition("-")[0],
            "samples": self.samples,
            "bytes": self.bytes,
            "sha256": self.sha256,
        }


def shard_name(split: str, number: int) -> str:
    """Name a shard; numbers are dense from 0 in each split."""
    return f"{split}-{number:06d}.tar"


def write_shard(path: AnyPath, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> Shard:
    """Write a tar atomically, with the members of each sample in the order given.

    Args:
        path: the tar; its folder is made.
        samples: (key, {extension: content}) pairs.

    Raises:
        UserError: a key that USTAR cannot hold.
        OSError: nothing is left behind.
    """
    members = []
    count = 0
    with atomic_file(path) as file:
        for key, contents in samples:
            count += 1
            for extension, content in contents.items():
                file.write(_header(f"{key}.{extension}", len(content)))
                place = file.tell(), len(content)
                members.append(Member(key, extension, *place, zlib.crc32(content)))
                file.write(content)
                file.write(bytes(-len(content) % BLOCK))
        file.write(END_OF_ARCHIVE)
    return Shard(path.name, count, file.bytes_written, file.sha256.hexdigest(), tuple(members))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    try:
        return info.tobuf(tarfile.USTAR_FORMAT)
    except ValueError as error:
        raise UserError(f"{name}: {error}; {USTAR_LIMITS}") from error


def fits_ustar(name: str) -> bool:
    """Tell whether a tar can hold a member of this name: see `USTAR_LIMITS`."""
    try:
        tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT)
    except ValueError:
        return False
    return True


def scan(path: AnyPath) -> Shard:
    """Describe a tar that `write_shard` wrote, by reading it.

    Raises:
        tarfile.TarError: it is damaged.
    """
    with fetched(path) as local:
        members = tuple(_members(local))
        keys = {member.key for member in members}
        return Shard(path.name, len(keys), local.stat().st_size, sha256(local), members)


def _members(path: Path) -> Iterator[Member]:
    """Yield what is in a tar, in order."""
    with tarfile.open(path, mode="r:") as tar:
        for info in tar:
            key, _, extension = info.name.partition(".")
            member = tar.extractfile(info)
            content = b"" if member is None else member.read()
            yield Member(key, extension, info.offset_data, info.size, zlib.crc32(content))


def save_record(path: AnyPath, shard: Shard) -> None:
    """Write the record of a finished shard; a shard with a record is not written again."""
    members = [list(astuple(member)) for member in shard.members]
    write_bytes(path, pretty_json({"entry": shard.entry(), "members": members}))


def load_record(path: AnyPath) -> Shard | None:
    """Read a finished shard's record; None unless the shard is there at its full length."""
    content = read_if_there(path)
    shard = None if content is None else parsed_record(content)
    if shard is None or not has_size(path.with_name(shard.name), shard.bytes):
        return None
    return shard


def parsed_record(content: bytes) -> Shard:
    """Read the content of a finished shard's record."""
    record = json.loads(content)
    entry = record["entry"]
    members = tuple(Member(*member) for member in record["members"])
    return Shard(entry["name"], entry["samples"], entry["bytes"], entry["sha256"], members)


def index_table(shards: Sequence[Shard]) -> pa.Table:
    """Tabulate every member: columns shard, key, extension, offset, size, crc32."""
    rows = [(shard.name, member) for shard in shards for member in shard.members]
    return pa.table(
        {
            "shard": pa.array([name for name, _ in rows]).dictionary_encode(),
            "key": pa.array([member.key for _, member in rows], pa.string()),
            "extension": pa.array([member.extension for _, member in rows]).dictionary_encode(),
            "offset": pa.array([member.offset for _, member in rows], pa.int64()),
            "size": pa.array([member.size for _, member in rows], pa.int64()),
            "crc32": pa.array([member.crc32 for _, member in rows], pa.uint32()),
        }
    )


def parquet_bytes(table: pa.Table, row_group_size: int = 1 << 17) -> bytes:
    """Encode a table; the same table gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=row_group_size)
    return buffer.getvalue()


def read_table(path: AnyPath, **read: Any) -> pa.Table:
    """Read a table, whether of a set or not; options go to `pyarrow.parquet`.

    Raises:
        FileNotFoundError: there is none.
        pyarrow.ArrowException: it is no table.
    """
    with opened(path) as file:
        return pq.read_table(file, **read)


def read_manifest(folder: AnyPath) -> dict[str, Any] | None:
    """Read a set's manifest; None where there is no complete set.

    Raises:
        UserError: a file of that name that is no manifest.
    """
    path = folder / MANIFEST
    try:
        return parsed_manifest(path, path.read_bytes())
    except FileNotFoundError:
        return None


def parsed_manifest(path: AnyPath, content: bytes) -> dict[str, Any]:
    """Read the content of a manifest.

    Raises:
        UserError: it is none.
    """
    try:
        manifest: dict[str, Any] = json.loads(content)
        shard_sizes(manifest), manifest["files"].keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is not a manifest of a set ({why}); move it away") from error
    return manifest


def shard_sizes(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Return the length in bytes of each shard of a manifest, by name."""
    return {entry["name"]: entry["bytes"] for entry in manifest["shards"]}


def file_entries(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what a manifest says of each of its files, shards and tables, by name."""
    return {**{entry["name"]: entry for entry in manifest["shards"]}, **manifest["files"]}


def lacking(folder: AnyPath, wanted: Mapping[str, int]) -> list[str]:
    """List the files of a folder that are absent or of another length than ``wanted`` says."""
    there = sizes(folder)
    return [name for name, length in wanted.items() if there.get(name) != length]


def file_entry(path: AnyPath) -> dict[str, Any]:
    """Return what a manifest says of a file that is no shard."""
    return {"bytes": size(path), "sha256": sha256(path)}


def publish(staging: AnyPath, folder: AnyPath) -> None:
    """Replace the set in ``folder`` by a staged one, such that no mixture of both counts as a set.

    ``staging`` holds a manifest and every file it names. Killed at any point, the same call
    finishes the work; between the first and the last rename the folder holds no manifest, so no
    set.
    """
    manifest = read_manifest(staging)
    if manifest is None:
        raise FileNotFoundError(staging / MANIFEST)
    (folder / MANIFEST).unlink(missing_ok=True)
    names = [entry["name"] for entry in manifest["shards"]] + list(manifest["files"])
    for stale in glob(folder, "*-[0-9][0-9][0-9][0-9][0-9][0-9].tar"):
        if stale.name not in names:
            stale.unlink()
    move_all(staging, folder, names)
    move(staging / MANIFEST, folder / MANIFEST)
    remove_tree(staging)
