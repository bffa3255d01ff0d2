"""Latents that are copied from an earlier set, because computing them would give the same.

A target is a function of the image's bytes, the autoencoder, the posterior (and, where it is
sampled, the seed and the key), the precision and how it is stored. A source depends on these, on
its kind, on predictor and regressor, and on its draw, which is a function of degradation, seed, key
and number. So with another predictor, degradation or seed the targets are still valid; with an
image set that grew or was cut again, all latents of the images that it had; with another
autoencoder, none. The bytes of a member are copied as they are. On a CPU, where a batch is one
image, a set is therefore the same to the byte whether its latents were copied or computed.

Before a worker copies from a shard of the earlier set, it compares the SHA-256 of the shard with
the manifest, or else a damaged latent would get a new, valid digest. Workers do this and not the
driver, because they hash in parallel, and only the shards that they use.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from datasets.degradation.parameters import DegradationParameters
from datasets.latent_format import (
    LatentFormat,
    image_extensions,
    source_extension,
    target_extension,
)
from datasets.reading.files import shards_of
from datasets.reading.ranges import Place, UnreadableRange, read_members
from datasets.sets import open_set
from datasets.shards import MANIFEST
from infra.config import differences, flat, to_dict
from infra.errors import UsageError, UserError
from infra.paths import AnyPath, path_of, sha256
from pipelines.encode.sums import STATISTICS, Latents, LatentTable

TARGET_FIELDS = ("vae", "vae_config", "posterior", "precision")
DRAW_FIELDS = ("degradation", "seed")
SOURCE_FIELDS = (
    *("source", "predictor", "predictor_config", "predictor_precision"),
    *("regressor", "regressor_config"),
)
STORED_FIELDS = ("channels", "height", "width", "dtype", "scale", "offset")
TARGETS = ("target_0", "target_1")
WITHOUT = "leave --reuse out to compute all latents"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reuse:
    """Which latents may be copied, and from which set."""

    folder: str
    """Folder of the earlier set."""
    manifest: str
    """SHA-256 of its manifest, by which a change of the set is noticed."""
    sources: bool
    """Whether sources may be copied too, or only targets."""


class MemberPlace(NamedTuple):
    """The place of a member's content."""

    shard: str
    offset: int
    size: int


Parameters = Callable[[str, int], DegradationParameters]
Copies = Mapping[str, Mapping[str, MemberPlace]]
"""Places of the members that a shard copies, by key and extension."""


def earlier_manifest(folder: AnyPath, output: AnyPath) -> dict[str, Any]:
    """Read the manifest of the set that latents are to be copied from.

    That set may not be the one in the output folder: a run that was killed while it published would
    leave neither set there.

    Raises:
        UsageError: it cannot be used.
    """
    if folder.resolve() == output.resolve():
        raise UsageError(
            f"--reuse {folder} is --output too: a set cannot be read while it is replaced; give "
            "another --output, and remove the earlier set afterwards"
        )
    try:
        manifest = open_set(folder, "latent set").manifest
    except UserError as error:
        raise UsageError(f"--reuse {error}; or {WITHOUT}") from error
    if STATISTICS not in manifest["files"]:
        raise UsageError(
            f"--reuse {folder}: has no {STATISTICS}, as sets of an earlier version; without it the "
            "statistics of the new set would be wrong: leave --reuse out"
        )
    return manifest


def reusable(
    folder: AnyPath, manifest: Mapping[str, Any], identity: Mapping[str, Any], latent: LatentFormat
) -> tuple[Reuse | None, str]:
    """Find what a set of ``identity`` may copy from another, and say it in a sentence.

    Args:
        folder: folder of the earlier set.
        manifest: manifest of the earlier set.
        identity: identity of the new set.
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
    """The set that latents are copied from, as one worker reads it.

    Args:
        reuse: which set.
        latent: how both sets store a latent.
        keep_images: whether LQ and posterior mean of copied sources are copied too.

    Raises:
        UserError: it is not the set that the driver saw.
    """

    def __init__(self, reuse: Reuse, latent: LatentFormat, *, keep_images: bool) -> None:
        self.folder = path_of(reuse.folder)
        self.takes_sources = reuse.sources
        self.latent = latent
        self.keep_images = keep_images
        try:
            opened = open_set(self.folder, "latent set")
            self._index = opened.index()
            opened.check(STATISTICS)
        except UserError as error:
            raise UserError(f"--reuse {error}; or {WITHOUT}") from error
        if opened.digest != reuse.manifest:
            raise UserError(
                f"--reuse {self.folder} has changed since this run began; run the command again"
            )
        self._shards, self._files = opened.shards_folder, shards_of(opened)
        hashes = {entry["name"]: entry["sha256"] for entry in opened.manifest["shards"]}
        self._table = LatentTable(self.folder / STATISTICS, latent.height * latent.width)
        self._checked = functools.cache(lambda shard: self._check(shard, hashes[shard]))
        self._sums: Latents = {}

    def find(self, hashes: Mapping[str, str], draws: range, parameters: Parameters) -> Copies:
        """List what may be copied for some samples, and load its sums for `sums`.

        Args:
            hashes: SHA-256 of the image's PNG, by key.
            draws: numbers of the draws that are wanted.
            parameters: returns the new set's parameters for (key, number).

        Raises:
            UserError: a shard that is missing or damaged, by its name: the hash of each from which
                something may be copied is compared with the manifest.
        """
        found = {}
        every = self._places(list(hashes))
        for (key, places), labels in zip(every.items(), self._labels(every), strict=True):
            if any(label["sha256"] != hashes[key] for label in labels):
                continue
            drawn = {number: draw for label in labels for number, draw in label["draws"].items()}
            names = [f"{name}.npy" for name in TARGETS]
            for number in draws:
                if str(number) in drawn:
                    names += self._of_draw(key, number, drawn[str(number)], parameters)
            found[key] = {name: places[name][0] for name in names if name in places}
        shards = {place.shard for copies in found.values() for place in copies.values()}
        for shard in sorted(shards):
            self._checked(shard)
        self._sums = self._table.sums(sorted(shards))
        for key, copies in found.items():
            for name in [name for name in copies if _is_counted(name)]:
                if (key, name) not in self._sums:  # the set grew from one without a table
                    del copies[name]
        return found

    def _of_draw(
        self, key: str, number: int, draw: Mapping[str, Any], parameters: Parameters
    ) -> list[str]:
        """Name the members of a stored draw that the new set's draw would have too."""
        if not (self.takes_sources or draw["gray_target"]):
            return []
        if draw["parameters"] != to_dict(parameters(key, number)):
            return []
        names = [target_extension(number, draw["flip"], gray=True)]
        if self.takes_sources:
            names += [
                source_extension(number),
                *(image_extensions(number) if self.keep_images else ()),
            ]
        return names

    def read(self, key: str, copies: Mapping[str, MemberPlace]) -> dict[str, bytes]:
        """Read members of a sample that `find` listed, together, by extension.

        Raises:
            UserError: a shard that is missing or damaged, by its name.
        """
        wanted = [_named(key, extension, place) for extension, place in copies.items()]
        return dict(zip(copies, self._contents(wanted), strict=True))

    def sums(self, key: str, extension: str) -> Mapping[str, Any]:
        """Return the channel sums of a latent that `find` listed."""
        return self._sums[key, extension]

    def _places(self, keys: Sequence[str]) -> dict[str, dict[str, list[MemberPlace]]]:
        """Look up all members of these samples, of which each generation of draws has a JSON."""
        rows = self._index.filter(pc.is_in(self._index["key"], pa.array(keys, pa.string())))
        places: dict[str, dict[str, list[MemberPlace]]] = {}
        for row in rows.to_pylist():
            of_key = places.setdefault(row["key"], {})
            place = MemberPlace(row["shard"], row["offset"], row["size"])
            of_key.setdefault(row["extension"], []).append(place)
        return places

    def _labels(
        self, places: Mapping[str, Mapping[str, Sequence[MemberPlace]]]
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the JSONs of each of these samples, all of which are asked for at once."""
        wanted = [
            [_named(key, "json", place) for place in of_key.get("json", ())]
            for key, of_key in places.items()
        ]
        contents = self._contents(list(chain.from_iterable(wanted)))
        for of_key in wanted:
            yield [self._label(place, next(contents)) for place in of_key]

    def _label(self, place: Place, content: bytes) -> dict[str, Any]:
        try:
            label: dict[str, Any] = json.loads(content)
        except ValueError as error:
            raise UserError(self._damaged(place.shard, f"{place.name}: {error}")) from error
        return label

    def _contents(self, places: Sequence[Place]) -> Iterator[bytes]:
        for found in read_members(self._files, places):
            if isinstance(found, UnreadableRange):
                raise UserError(f"--reuse: {found}, or leave --reuse out") from found
            yield found

    def _check(self, name: str, expected: str) -> None:
        try:
            found = sha256(self._shards / name)
        except OSError as error:
            raise UserError(self._damaged(name, str(error.strerror))) from error
        if found != expected:
            said = f"SHA-256 {found[:12]}, the manifest says {expected[:12]}"
            raise UserError(self._damaged(name, said))

    def _damaged(self, name: str, what: str) -> str:
        return f"--reuse {self.folder / name}: {what}; copy the file anew, or {WITHOUT}"


def _named(key: str, extension: str, place: MemberPlace) -> Place:
    return Place(place.shard, f"{key}.{extension}", place.offset, place.size)


def _is_counted(extension: str) -> bool:
    """Tell whether a member is a latent of the statistics: gray targets and images are not."""
    return extension.endswith(".npy") and not extension.startswith("target_g")
