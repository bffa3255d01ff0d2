"""Latents of an earlier set that nothing has changed since: copied, not computed.

A target is a function of the image's bytes, the autoencoder, the posterior (and, where it is
sampled, the seed and the key), the precision and how it is stored. A source depends on these, on
its kind, on predictor and regressor, and on its draw, which is a function of degradation, seed, key
and number. So another predictor, degradation or seed leaves the targets as they are; an image set
that grew or was cut again leaves all latents of the images that it had; another autoencoder leaves
nothing but the draws, which are drawn anew in any case. Copied are the very bytes of a member. On a
CPU, where a batch is one image, a set is therefore the same to the byte whether it copied or not.

Before a shard of the earlier set gives its first byte to a worker, the worker compares its SHA-256
with the manifest: a rotten latent would otherwise go on under a new, valid digest. It is done there
and not by the driver, because workers hash side by side, only what they use, and right before they
use it; two of them hash a shard twice where the new shards are cut elsewhere than the old ones.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.degradation.parameters import DegradationParameters
from datasets.latent_format import LatentFormat
from datasets.reading.ranges import LocalFiles, names_member
from datasets.shards import BLOCK, INDEX, MANIFEST, read_manifest
from infra.config import differences, flat, to_dict
from infra.errors import UsageError, UserError
from infra.storage import sha256
from pipelines.encode.sums import STATISTICS, Latents, LatentTable

TARGET_FIELDS = ("vae", "vae_config", "posterior", "precision")
DRAW_FIELDS = ("degradation", "seed")
SOURCE_FIELDS = ("source", "predictor", "predictor_config", "regressor", "regressor_config")
STORED_FIELDS = ("channels", "height", "width", "dtype", "scale", "offset")
TARGETS = ("target_0", "target_1")
KEPT_IMAGES = ("lq", "posterior_mean")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reuse:
    """What may be taken from which set."""

    folder: str
    """Of the earlier set."""
    manifest: str
    """SHA-256 of its manifest: it must not change while it is read."""
    sources: bool
    """Whether sources too, or targets only."""


class MemberPlace(NamedTuple):
    """Where a member's content lies."""

    shard: str
    offset: int
    size: int


Parameters = Callable[[str, int], DegradationParameters]
Copies = Mapping[str, Mapping[str, MemberPlace]]
"""What of a shard is copied: by key and extension."""


def earlier_manifest(folder: Path, output: Path) -> dict[str, Any]:
    """Read the manifest of a set that latents are to be taken from.

    It may not be the output folder's own, to be overwritten: a run that was killed between the
    first and the last rename of its publication would find neither set there.

    Raises:
        UsageError: it cannot be used.
    """
    if folder.resolve() == output.resolve():
        raise UsageError(
            f"--reuse {folder} is --output too: a set cannot be read while it is replaced; give "
            "another --output, and remove the earlier set afterwards"
        )
    manifest = read_manifest(folder)
    if manifest is None or "identity" not in manifest:
        raise UsageError(f"--reuse {folder}: no complete latent set here; leave --reuse out")
    if STATISTICS not in manifest["files"]:
        raise UsageError(
            f"--reuse {folder}: has no {STATISTICS}, as sets of an earlier version; without it the "
            "statistics of the new set would be wrong: leave --reuse out"
        )
    return manifest


def reusable(
    folder: Path, manifest: Mapping[str, Any], identity: Mapping[str, Any], latent: LatentFormat
) -> tuple[Reuse | None, str]:
    """Find what a set of ``identity`` may take from another, and say it in a sentence.

    Args:
        folder: of the earlier set.
        manifest: its manifest.
        identity: of the new set.
        latent: how the new set stores a latent.
    """
    old = manifest["identity"]

    def changes(*names: str) -> list[str]:
        sides = [{name: side.get(name) for name in names} for side in (identity, old)]
        for name in names:
            if name.endswith("_config") and None in (sides[0][name], sides[1][name]):
                del sides[0][name], sides[1][name]  # no network there: its digest says so too
        return differences(flat(sides[0]), flat(sides[1]))

    forms = (to_dict(latent), manifest["latent"])
    stored, earlier = ({name: form[name] for name in STORED_FIELDS} for form in forms)
    of_targets = [*changes(*TARGET_FIELDS), *differences(stored, earlier)]
    if identity["posterior"] == "sample":
        of_targets += changes("seed", "noise")
    of_sources = changes(*DRAW_FIELDS, *SOURCE_FIELDS)
    if identity["keep_images"] and not old["keep_images"]:
        of_sources.append("keep_images: False -> True")
    if of_targets:
        return None, f"--reuse {folder}: nothing to copy ({'; '.join(of_targets)})\n"
    what = "targets and sources" if not of_sources else "targets"
    why = f", but not sources ({'; '.join(of_sources)})" if of_sources else ""
    said = f"--reuse {folder}: {what} of images that have not changed are copied{why}\n"
    digest = sha256(folder / MANIFEST)
    return Reuse(folder=str(folder), manifest=digest, sources=not of_sources), said


class EarlierSet:
    """The set that latents are taken from, in one worker.

    Args:
        reuse: which set.
        latent: how both sets store a latent.
        keep_images: whether LQ and posterior mean of copied sources are wanted.

    Raises:
        UserError: it is not the set that the driver saw.
    """

    def __init__(self, reuse: Reuse, latent: LatentFormat, *, keep_images: bool) -> None:
        self.folder = Path(reuse.folder)
        self.takes_sources = reuse.sources
        self.latent = latent
        self.images = KEPT_IMAGES if keep_images else ()
        manifest = read_manifest(self.folder)
        if manifest is None or sha256(self.folder / MANIFEST) != reuse.manifest:
            raise UserError(
                f"--reuse {self.folder} has changed since this run began; run the command again"
            )
        self._entries = {entry["name"]: entry for entry in manifest["shards"]}
        self._files = LocalFiles(
            self.folder, {name: entry["bytes"] for name, entry in self._entries.items()}
        )
        for name in (INDEX, STATISTICS):
            self._check(name, manifest["files"][name]["sha256"])
        self._index = pq.read_table(self.folder / INDEX)
        self._table = LatentTable(self.folder / STATISTICS, latent.height * latent.width)
        self._checked = functools.cache(
            lambda shard: self._check(shard, self._entries[shard]["sha256"])
        )
        self._sums: Latents = {}

    def find(self, hashes: Mapping[str, str], draws: range, parameters: Parameters) -> Copies:
        """List what may be copied for some samples; its sums are at hand from then on.

        Args:
            hashes: by key, the SHA-256 of the image's PNG.
            draws: those that are wanted.
            parameters: draws (key, number), as the new set does.
        """
        found = {}
        for key, places in self._places(list(hashes)).items():
            labels = [self._label(key, place) for place in places.get("json", ())]
            if any(label["sha256"] != hashes[key] for label in labels):
                continue
            drawn = {number: draw for label in labels for number, draw in label["draws"].items()}
            names = [f"{name}.npy" for name in TARGETS]
            for number in draws:
                if str(number) in drawn:
                    names += self._of_draw(key, number, drawn[str(number)], parameters)
            found[key] = {name: places[name][0] for name in names if name in places}
        shards = {place.shard for copies in found.values() for place in copies.values()}
        self._sums = self._table.sums(sorted(shards))
        for key, copies in found.items():
            for name in [name for name in copies if _is_counted(name)]:
                if (key, name) not in self._sums:  # the set grew from one without a table
                    del copies[name]
        return found

    def _of_draw(
        self, key: str, number: int, draw: Mapping[str, Any], parameters: Parameters
    ) -> list[str]:
        """Name the members of a stored draw that are those of the new set's draw, if any."""
        if not (self.takes_sources or draw["gray_target"]):
            return []
        if draw["parameters"] != to_dict(parameters(key, number)):
            return []
        names = [f"target_g{number}.npy"]
        if self.takes_sources:
            names += [f"source_{number}.npy", *(f"{name}_{number}.png" for name in self.images)]
        return names

    def read(self, key: str, extension: str, place: MemberPlace) -> bytes:
        """Read one member, of a shard that is what its manifest says.

        Raises:
            UserError: a shard that is missing or damaged, by its name.
        """
        self._checked(place.shard)
        return self._read(key, extension, place)

    def sums(self, key: str, extension: str) -> Mapping[str, Any]:
        """Return the channel sums of a latent that `find` listed."""
        return self._sums[key, extension]

    def _places(self, keys: Sequence[str]) -> dict[str, dict[str, list[MemberPlace]]]:
        """Look up all members of these samples; every generation of draws has its own JSON."""
        rows = self._index.filter(pc.is_in(self._index["key"], pa.array(keys, pa.string())))
        places: dict[str, dict[str, list[MemberPlace]]] = {}
        for row in rows.to_pylist():
            of_key = places.setdefault(row["key"], {})
            place = MemberPlace(row["shard"], row["offset"], row["size"])
            of_key.setdefault(row["extension"], []).append(place)
        return places

    def _label(self, key: str, place: MemberPlace) -> dict[str, Any]:
        try:
            label: dict[str, Any] = json.loads(self._read(key, "json", place))
        except ValueError as error:
            raise UserError(self._damaged(place.shard, f"{key}.json: {error}")) from error
        return label

    def _read(self, key: str, extension: str, place: MemberPlace) -> bytes:
        head, content = bytearray(BLOCK), bytearray(place.size)
        views = [memoryview(head), memoryview(content)]
        self._files.read(place.shard, place.offset - BLOCK, views)
        if not names_member(head, f"{key}.{extension}".encode()):
            raise UserError(self._damaged(place.shard, f"{key}.{extension} is not in its place"))
        return bytes(content)

    def _check(self, name: str, expected: str) -> None:
        try:
            found = sha256(self.folder / name)
        except OSError as error:
            raise UserError(self._damaged(name, str(error.strerror))) from error
        if found != expected:
            raise UserError(self._damaged(name, f"SHA-256 {found}, the manifest says {expected}"))

    def _damaged(self, name: str, what: str) -> str:
        return (
            f"--reuse {self.folder / name}: {what}; copy the file anew, or leave --reuse out to "
            "compute all latents"
        )


def _is_counted(extension: str) -> bool:
    """Tell whether a member is a latent of the statistics: gray targets and images are not."""
    return extension.endswith(".npy") and not extension.startswith("target_g")
