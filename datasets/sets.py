"""Opening of a published set: it is of the kind that is wanted, complete, and in agreement.

A manifest names the SHA-256 of every table. A table is read once, hashed, and only then believed: a
table of an earlier set, of another one, or half of one has rows that look right. Hashing takes
0.6 ms for a megabyte, which is 0.01 s for the table of a million pairs. The shards are not hashed,
which `verify` does; they must be there at their lengths.

The number at the end of a manifest's `format` is raised when a set gets something that an earlier
program does not know. Readers take all numbers up to their own, and treat what a set of an earlier
number lacks as unknown:

    latent-pmrf/samples/2    CRC-32 of every member in the index; `ignored.parquet`
    latent-pmrf/latents/2    CRC-32 of every member in the index and the pair table
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.kinds import described, kind_of
from datasets.shards import INDEX, MANIFEST, lacking, parsed_manifest, shard_sizes
from infra.errors import UserError
from infra.paths import AnyPath, sha256

Kind = Literal["image set", "latent set"]
FORMATS: Mapping[Kind, Sequence[str]] = {
    "image set": ("latent-pmrf/samples/1", "latent-pmrf/samples/2"),
    "latent set": ("latent-pmrf/latents/1", "latent-pmrf/latents/2"),
}
"""The formats that are read, by kind of set; the last one is written."""
MAKERS: Mapping[Kind, str] = {
    "image set": "python -m pipelines.curate makes one of photographs",
    "latent set": "python -m pipelines.encode makes one of an image set",
}
ARTICLES: Mapping[Kind, str] = {"image set": "an", "latent set": "a"}
VERSIONS = "versions"
"""Folder of a set with what it was before it grew, see `datasets.versions`."""
COPY = "copy the set anew, or make it again"


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """A set as its manifest describes it."""

    folder: AnyPath
    """Where it is."""
    manifest: dict[str, Any]
    """What it claims."""
    digest: str
    """Its identity: the SHA-256 of the manifest, which names that of every file."""
    kind: Kind
    """What it holds."""

    @property
    def shards_folder(self) -> AnyPath:
        """Where the shards are, see `shards_folder`."""
        return shards_folder(self.folder)

    def table(self, name: str, **read: Any) -> pa.Table:
        """Read a table that is the one of the manifest; options go to `pyarrow.parquet`.

        Raises:
            UserError: it is missing, or another one.
        """
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"{self.folder / name}: {error.strerror}; {COPY}") from error
        self._agrees(name, hashlib.sha256(data).hexdigest())
        return pq.read_table(pa.BufferReader(data), **read)

    def check(self, name: str) -> None:
        """Refuse a file of the set that is not the one of the manifest.

        Raises:
            UserError: it is missing, or another one.
        """
        try:
            self._agrees(name, sha256(self.folder / name))
        except OSError as error:
            raise UserError(f"{self.folder / name}: {error.strerror}; {COPY}") from error

    def _agrees(self, name: str, found: str) -> None:
        claimed = self.manifest["files"].get(name, {}).get("sha256", "nothing")
        if found != claimed:
            raise UserError(
                f"{self.folder / name} does not belong to this set, or is damaged: its SHA-256 is "
                f"{found[:12]}, {MANIFEST} says {claimed[:12]}; {COPY}"
            )

    def index(self) -> pa.Table:
        """Read the table of all members, which has as many samples as the manifest.

        Raises:
            UserError: it is missing, or another one.
        """
        index = self.table(INDEX)
        members = pa.table([index["shard"].cast(pa.string()), index["key"]], ["shard", "key"])
        found = members.group_by("shard").aggregate([("key", "count_distinct")])
        counts = dict(zip(*found.to_pydict().values(), strict=True))
        self.has_shards(INDEX, list(counts))
        for entry in self.manifest["shards"]:
            name, samples = entry["name"], entry["samples"]
            if counts.get(name, 0) != samples:
                raise UserError(
                    f"{self.folder}: {INDEX} has {counts.get(name, 0)} samples in {name}, "
                    f"{MANIFEST} has {samples}; {COPY}"
                )
        return index

    def refuse_if_replaced(self) -> None:
        """Refuse to go on if the shards that were here when the set was opened are not the set's.

        A set may grow while it is read, which changes none of them.

        Raises:
            UserError: it was removed, or another set was published in its place.
        """
        try:
            shards = json.loads((self.folder / MANIFEST).read_bytes())["shards"]
        except FileNotFoundError:
            shards = []
        if any(entry not in shards for entry in self.manifest["shards"]):
            raise UserError(
                f"{self.folder} was replaced while it was read: another set has been published "
                "here, or is being. A run goes on only with the set that it began with: make that "
                "one again, start a new run on this one, and give each set an --output of its own"
            )

    def has_shards(self, table: str, shards: Sequence[str]) -> None:
        """Refuse a table with members in shards that the manifest does not name.

        Raises:
            UserError: names one.
        """
        strange = sorted(set(shards) - shard_sizes(self.manifest).keys())
        if strange:
            raise UserError(
                f"{self.folder}: {table} has members in {strange[0]}, which {MANIFEST} does not "
                f"name; {COPY}"
            )


def shards_folder(folder: AnyPath) -> AnyPath:
    """Return where the shards of a set are: of a version of one that grew, with those of the set.

    Args:
        folder: of the set, or of the version.
    """
    above = folder.parent
    return above.parent if above.name == VERSIONS else folder


class EmptySplitError(UserError):
    """A set that has nothing of the split that is wanted."""


def open_set(folder: AnyPath, kind: Kind) -> PublishedSet:
    """Open a set of a kind, all of whose shards are there.

    Raises:
        UserError: there is no such set here; the message says what there is instead.
    """
    found = claimed_set(folder, kind)
    lost = lacking(found.shards_folder, shard_sizes(found.manifest))
    if lost:
        raise UserError(
            f"{folder}: {len(lost)} of {len(found.manifest['shards'])} shards are missing or have "
            f"another length than {MANIFEST} says, first {lost[0]}; {COPY}"
        )
    return found


def claimed_set(folder: AnyPath, kind: Kind) -> PublishedSet:
    """Read the claims of a set of a kind, whose files may be missing or damaged.

    Raises:
        UserError: there is no such set here; the message says what there is instead.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(_instead(folder, kind)) from error
    manifest = parsed_manifest(path, content)
    _refuse_other(folder, manifest, kind)
    return PublishedSet(folder, manifest, hashlib.sha256(content).hexdigest(), kind)


def _refuse_other(folder: AnyPath, manifest: Mapping[str, Any], kind: Kind) -> None:
    said = manifest.get("format")
    if kind_of(said) != f"{ARTICLES[kind]} {kind}":
        raise UserError(_instead(folder, kind))
    if said not in FORMATS[kind]:
        raise UserError(
            f"{folder}: a set of format {said}; this version of the program reads "
            f"{', '.join(FORMATS[kind])}: take a newer one"
        )


def _instead(folder: AnyPath, kind: Kind) -> str:
    wanted = f"{ARTICLES[kind]} {kind}"
    return f"{folder}: {described(folder)}; {wanted} is wanted here, {MAKERS[kind]}"
