"""Verification of a latent set: by its own records, and by computing some latents again."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from datasets import latent_pairs
from datasets.decoding import UndecodableImage, decode
from datasets.degradation.batched import degrade_batch
from datasets.degradation.parameters import DegradationConfig, DegradationParameters
from datasets.degradation.reference import draw_parameters
from datasets.latent_format import (
    NPY_HEADER,
    LatentFormat,
    extensions,
    source_extension,
    target_extension,
)
from datasets.latent_pairs import PAIRS
from datasets.reading.files import shards_of
from datasets.reading.image_set import ImageSample
from datasets.reading.ranges import read_member
from datasets.sets import PublishedSet, claimed_set
from datasets.shards import INDEX, MANIFEST
from datasets.verify import Inspected, guarded, readable_manifest, set_problems
from infra.config import differences, flat, from_dict, to_dict
from infra.errors import UsageError, UserError
from infra.paths import AnyPath, path_of
from pipelines.encode import claims
from pipelines.encode import sums as latent_table
from pipelines.encode.config import VerifyConfig
from pipelines.encode.images import open_images
from pipelines.encode.networks import Encoder
from pipelines.encode.sums import STATISTICS, latent_values
from pipelines.jobs.folder import plain

EXACT = 1e-3  # of a standard deviation: sums are rounded differently in other batches or versions
LOOSE = 0.05  # the same at low precision or on another device, where JPEG amplifies the difference


def all_problems(folder: AnyPath, options: VerifyConfig) -> Iterator[str]:
    """Yield the `problems` of a set; if there are none, those of its latents, computed again."""
    sound = True
    for problem in problems(folder):
        sound = False
        yield problem
    if sound and options.recompute:
        yield from recomputed(folder, options)


def problems(folder: AnyPath) -> Iterator[str]:
    """Yield one sentence for everything that is not as the set's own records say.

    Checked, besides `datasets.verify.set_problems`: every sample has a target of both flips
    somewhere, and a source for each draw its JSON describes, of the set's shape and dtype and
    finite; every draw's parameters are those of (configuration, seed, key, number); the pair table
    is right and has every draw of every sample.
    """
    manifest = yield from readable_manifest(folder)
    if manifest is None:
        return
    try:
        inspector = _Inspector(manifest)
    except (UserError, KeyError, TypeError) as error:
        yield f"{folder / MANIFEST}: not of a latent set ({error!r})"
        return
    inspected = Inspected()
    yield from set_problems(folder, inspector.sample, inspected)
    if inspected.is_whole:
        yield from guarded(PAIRS, _pairs(folder, inspector))
        yield from guarded(STATISTICS, latent_table.problems(folder, manifest))
        yield from guarded(MANIFEST, claims.problems(folder, manifest))
        yield from guarded(MANIFEST, _draws(manifest, inspector))


def _pairs(folder: AnyPath, inspector: "_Inspector") -> Iterator[str]:
    claimed = claimed_set(folder, "latent set")
    yield from latent_pairs.problems(claimed)
    table = claimed.table(PAIRS, columns=["key", "draw"])
    pairs = set(zip(table["key"].to_pylist(), table["draw"].to_pylist(), strict=True))
    for key, number in sorted(inspector.draws ^ pairs):
        yield f"{key}: draw {number} is in only one of the shards and {PAIRS}"


def _draws(manifest: Mapping[str, Any], inspector: "_Inspector") -> Iterator[str]:
    expected = range(manifest["draws"])
    for key in sorted({key for key, _ in inspector.draws}):
        if missing := [n for n in expected if (key, n) not in inspector.draws]:
            yield f"{key}: draws {missing} are missing"


class _Inspector:
    """Inspects the samples of a latent set, of which each tar holds a part."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.latent = from_dict(LatentFormat, manifest["latent"])
        self.header = self.latent.header()
        self.seed = manifest["identity"]["seed"]
        self.keep_images = manifest["identity"]["keep_images"]
        self.degradation = from_dict(DegradationConfig, manifest["identity"]["degradation"])
        self.draws: set[tuple[str, int]] = set()

    def sample(
        self, path: AnyPath, key: str, members: dict[str, bytes], inspected: Inspected
    ) -> Iterator[str]:
        """Inspect the part of a sample that is in one tar; see `datasets.verify.Inspect`."""
        where = f"{path.name}: {key}"
        inspected.shard_of.setdefault(key, path.name)
        try:
            label = json.loads(members["json"])
            draws = {int(number): draw for number, draw in label["draws"].items()}
            expected = set(
                extensions(draws, lambda k: draws[k]["gray_target"], images=self.keep_images)
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            yield f"{where}: no JSON of a latent sample ({error!r})"
            return
        if label["key"] != key:
            yield f"{where}: its JSON says key {label['key']}"
        if members.keys() != expected:
            yield f"{where} differs from its JSON in members {sorted(members.keys() ^ expected)}"
        for extension, content in members.items():
            yield from self._member(f"{where}.{extension}", extension, content)
        for number, draw in draws.items():
            yield from self._draw(f"{where}: draw {number}", key, number, draw)
            self.draws.add((key, number))

    def _member(self, where: str, extension: str, content: bytes) -> Iterator[str]:
        if extension.endswith(".npy"):
            if content[:NPY_HEADER] != self.header or len(content) != self.latent.member_bytes:
                yield f"{where}: not a latent {list(self.latent.shape)} of {self.latent.dtype}"
            elif not np.isfinite(latent_values(content, self.latent)).all():
                yield f"{where}: not finite"
        elif extension.endswith(".png"):
            try:
                decode(content)
            except UndecodableImage as error:
                yield f"{where}: {error}"

    def _draw(self, where: str, key: str, number: int, draw: Mapping[str, Any]) -> Iterator[str]:
        drawn = draw_parameters(self.degradation, seed=self.seed, key=key, draw=number)
        for change in differences(draw["parameters"], plain(to_dict(drawn))):
            yield f"{where}: its parameters are not those of its seed, key and number: {change}"
        if (draw["flip"], draw["gray_target"]) != (drawn.flip, drawn.gray_target):
            yield f"{where}: flip or gray differs from its parameters"


def recomputed(folder: AnyPath, options: VerifyConfig) -> Iterator[str]:
    """Compute some latents again, from pixels and stored draws; yield what differs.

    Allowed is half a step of the dtype, and a thousandth of a standard deviation for the rounding
    of another batch or library; a twentieth at low precision or on another kind of device.

    Raises:
        UsageError: the images or weights cannot be read, or are not those of the set.
    """
    claimed = claimed_set(folder, "latent set")
    manifest = claimed.manifest
    saved = json.loads((folder / "config.json").read_bytes())
    config = options.over(saved)
    images = open_images(path_of(config.input), config.limit)
    encoder = Encoder(config.rule)
    wanted = {**encoder.identity, "images": images.digest}
    made = {name: manifest["identity"].get(name) for name in wanted}
    if changed := differences(flat(plain(wanted)), flat(made)):
        raise UsageError(
            f"{folder} was not made with what is given ({'; '.join(changed)}); give what made it "
            "by --input, --vae, --predictor and --regressor"
        )
    reader = _Reader(claimed)
    same = all(
        (name == "cpu") == (config.rule.device == "cpu")
        for generation in manifest["generations"]
        for name in generation["devices"]
    )
    slack = EXACT if same and encoder.is_exact else LOOSE
    for row in images.spread(options.recompute):
        sample = images.sample(row)
        for pair in reader.pairs(sample.key):
            source, target = _encode_again(encoder, sample, pair, reader.parameters(pair))
            for side, latent in {"source": source, "target": target}.items():
                stored = reader.latent(pair, side)
                error = np.abs(_in_range(latent, reader.format) - stored)
                excess = error - reader.half_step(stored) - slack * reader.std
                if excess.max() > 0:
                    yield (
                        f"{sample.key}: the {side} of draw {pair['draw']} is not what its pixels "
                        f"give: off by up to {error.max():.3g}, {excess.max():.3g} too much"
                    )


class _Reader:
    """Reads single latents of a set."""

    def __init__(self, claimed: PublishedSet) -> None:
        self.manifest = claimed.manifest
        self.format = from_dict(LatentFormat, claimed.manifest["latent"])
        self._pairs, self._index = claimed.table(PAIRS), claimed.table(INDEX)
        self._files = shards_of(claimed)

    @property
    def std(self) -> npt.NDArray[np.float64]:
        """Standard deviation of the targets, [C, 1, 1]."""
        return np.array(self.manifest["statistics"]["target"]["std"])[:, None, None]

    def pairs(self, key: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._pairs.filter(pc.field("key") == key).to_pylist()
        return rows

    def parameters(self, pair: Mapping[str, Any]) -> DegradationParameters:
        """Read the stored draw of a pair from the JSON beside its source."""
        index = self._index.filter(pc.field("key") == pair["key"])
        place = index.filter(
            pc.and_(
                pc.equal(index["extension"].cast("string"), "json"),
                pc.equal(index["shard"].cast("string"), pair["source_shard"]),
            )
        ).to_pylist()[0]
        name = f"{pair['key']}.json"
        member = self._read(pair["source_shard"], name, place["offset"], place["size"])
        label = json.loads(member)
        return from_dict(DegradationParameters, label["draws"][str(pair["draw"])]["parameters"])

    def latent(self, pair: Mapping[str, Any], side: str) -> npt.NDArray[np.float32]:
        extension = source_extension(pair["draw"])
        if side == "target":
            extension = target_extension(pair["draw"], pair["flip"], pair["gray"])
        shard, offset, size = (pair[f"{side}_{what}"] for what in ("shard", "offset", "size"))
        content = self._read(shard, f"{pair['key']}.{extension}", offset, size)
        return latent_values(content, self.format)

    def half_step(self, stored: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Return by how much rounding to the set's dtype can change a value."""
        latent = self.format
        if latent.scale is not None:
            return np.array(latent.scale)[:, None, None] / 2
        if latent.dtype == "float16":
            return np.spacing(np.abs(stored).astype(np.float16)).astype(np.float64) / 2
        return np.zeros(1)

    def _read(self, shard: str, name: str, offset: int, size: int) -> bytes:
        return read_member(self._files, shard, name, offset, size)


def _in_range(latent: npt.NDArray[np.float32], form: LatentFormat) -> npt.NDArray[np.float32]:
    """Clip a latent to the range of its 8-bit levels, if it is stored so."""
    if form.scale is None or form.offset is None:
        return latent
    low = np.array(form.offset)[:, None, None]
    return np.clip(latent, low, low + 255 * np.array(form.scale)[:, None, None])


def _encode_again(
    encoder: Encoder,
    sample: ImageSample,
    pair: Mapping[str, Any],
    parameters: DegradationParameters,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return source and target latent of a stored draw, from the image's pixels."""
    (degraded,) = degrade_batch([sample.image], [parameters], encoder.device)
    start = encoder.restorer.posterior_mean(encoder.tensor([degraded.lq]))
    target = target_extension(pair["draw"], pair["flip"], pair["gray"]).removesuffix(".npy")
    names = [f"{sample.key}.source_{pair['draw']}"]
    (source_latent,) = encoder.encode(start, names, is_source=True)
    (target_latent,) = encoder.encode(encoder.tensor([degraded.hq]), [f"{sample.key}.{target}"])
    return source_latent.latent, target_latent.latent
