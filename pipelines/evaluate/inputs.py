"""What a model restores: the LQ pictures that are given, or those that an image set is degraded to.

OUT/inputs/lq/KEY.png             what becomes of each image of the set
OUT/inputs/hq/KEY.png             the picture that belongs to it: mirrored or grey where it is
OUT/inputs/degradations.parquet   the severity of each degradation; written last

A degradation is a function of (configuration, seed, key), and its pictures are written once, so
that others can restore the very same ones. What they depend on stands in the hidden folder, and
another configuration is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from datasets.decoding import encode_png, opened_image, single_threaded
from datasets.degradation.parameters import (
    PRESETS,
    DegradationConfig,
    DegradationParameters,
    degradation_preset,
)
from datasets.degradation.reference import check_size, degrade, draw_parameters, to_levels
from datasets.folders import contents
from datasets.reading.image_set import ImageSet
from datasets.sets import EmptySplitError
from datasets.shards import parquet_bytes, read_manifest
from datasets.sources import list_images, read
from datasets.test_sets import PROTOCOLS
from datasets.unusable import UnusableImage
from infra import paths
from infra.config import digest, from_dict, pretty_json, to_dict
from infra.errors import UsageError, UserError
from infra.paths import AnyPath, path_of, write_bytes
from models.bundle_facts import BundleConfig
from pipelines.evaluate.config import EvaluateConfig, InputConfig, SetsConfig
from pipelines.jobs.folder import SetFolder, plain
from pipelines.jobs.stage import Engine, Stopwatch

FOLDER, LQ, HQ, DEGRADATIONS = "inputs", "lq", "hq", "degradations.parquet"
IDENTITY = "inputs.json"
UNIT = 16  # images that are degraded by one unit of work


def is_image_set(where: str) -> bool:
    """Tell whether --input is a published set, and not a folder or an archive of pictures."""
    path = path_of(where)
    return path.is_dir() and read_manifest(path) is not None


def has_hq(config: EvaluateConfig) -> bool:
    """Tell whether there is the HQ picture of every LQ one."""
    is_there = bool(config.sets.reference) or is_image_set(config.given.input)
    return PROTOCOLS[config.sets.protocol].has_hq and is_there


def prepared(
    config: EvaluateConfig, bundle: BundleConfig, output: SetFolder, engine: Engine
) -> SetsConfig:
    """Make the pictures that a model restores.

    Args:
        config: the pictures or the image set, and the folders that are given beside them.
        bundle: the model's: the side in pixels of what it restores to, and what it undoes.
        output: the evaluation's folder, which is held.
        engine: what degrades.

    Returns:
        The folders, of which ``lq`` are the pictures to restore.

    Raises:
        UsageError: no pictures, folders that an image set itself has, HQ pictures of another size
            than the model's, a model that does not say what it undoes, or pictures of another
            configuration.
        UserError: the image set is damaged.
    """
    given, sets, size = config.given, config.sets, bundle.size
    if sets.lq:
        raise UsageError(f"--lq {sets.lq}: the LQ pictures are those of --input; leave it out")
    if not path_of(given.input).exists():
        raise UsageError(f"--input {given.input}: no such folder or archive")
    if not is_image_set(given.input):
        if has_hq(config):
            require_size(f"--reference {sets.reference}", first_size(sets, output), size)
        return replace(sets, lq=given.input)
    for option in ("reference", "degradations"):
        if other := getattr(sets, option):
            raise UsageError(
                f"--{option} {other}: --input {given.input} is an image set, whose own HQ "
                "pictures and degradations are compared with; leave it out"
            )
    folder = output.path / FOLDER
    degradation = degradation_of(given, bundle)
    degraded(given, opened(given, size), degradation, folder, output, engine)
    return replace(
        sets,
        lq=str(folder / LQ),
        reference=str(folder / HQ),
        degradations=str(folder / DEGRADATIONS),
    )


def degradation_of(given: InputConfig, bundle: BundleConfig) -> DegradationConfig:
    """Return what makes LQ of an image set: what is asked for, else what the model learnt to undo.

    Raises:
        UsageError: the model does not say what that was.
    """
    if given.degradation is not None:
        return degradation_preset(given.degradation)
    if not bundle.training.degradation:
        raise UsageError(
            "--model does not say which degradations it was trained to undo; give --degradation, "
            f"one of {', '.join(PRESETS)}"
        )
    return from_dict(DegradationConfig, bundle.training.degradation, "--model: degradation")


def opened(given: InputConfig, size: int) -> ImageSet:
    """Open the part of an image set that is degraded.

    Raises:
        UsageError: it is no complete image set, or of another size than the model's.
    """
    try:
        images = ImageSet(path_of(given.input), split=given.split, limit=given.limit)
        side = images.size
    except EmptySplitError as error:
        raise UsageError(f"--input {error}, or give --split train") from error
    except UserError as error:
        raise UsageError(f"--input {error}") from error
    require_size(f"--input {given.input}", (side, side), size)
    return images


def require_size(what: str, size: tuple[int, int], model: int) -> None:
    """Refuse HQ pictures that are not as large as what a model restores to.

    Raises:
        UsageError: names both sizes.
    """
    if size != (model, model):
        raise UsageError(
            f"{what}: HQ pictures of {size[0]} x {size[1]} pixels, and --model restores to {model} "
            f"x {model}; metrics compare pictures of one size: give HQ pictures of the model's "
            "size, or a model of theirs"
        )


def first_size(sets: SetsConfig, output: SetFolder) -> tuple[int, int]:
    """Return width and height of the first picture of the reference.

    Raises:
        UsageError: there is none, or it cannot be opened.
    """
    found = list_images((sets.reference,), output.state / "sources").images
    if not found:
        raise UsageError(f"--reference {sets.reference}: no picture in it")
    try:
        with opened_image(read(found[0])) as image:
            return image.size
    except UnusableImage as error:
        raise UsageError(f"--reference {sets.reference}: {found[0].file}: {error}") from error


def degraded(
    given: InputConfig,
    images: ImageSet,
    degradation: DegradationConfig,
    folder: AnyPath,
    output: SetFolder,
    engine: Engine,
) -> None:
    """Write what is not written yet of the pictures of an image set and of their table.

    Raises:
        UsageError: the folder has those of another set or configuration.
        UserError: the image set is damaged.
    """
    spec = DegradeSpec(
        images=given.input,
        output=str(folder),
        degradation=degradation,
        seed=given.degradation_seed,
    )
    rows = [images.row(number) for number in range(len(images))]
    refuse_too_small(images.size, degradation, spec.parameters(rows[0]["key"]))
    identity = plain(
        {
            "input": images.digest,
            "limit": given.limit,
            "degradation": to_dict(degradation),
            "degradation_seed": given.degradation_seed,
        }
    )
    output.claim(IDENTITY, identity, overwrite=given.overwrite)
    mark, wanted = output.state / IDENTITY, pretty_json(identity)
    if paths.read_if_there(mark) != wanted:
        mark.unlink(missing_ok=True)  # first, so that a kill leaves nothing of two configurations
        paths.remove_tree(folder)
        write_bytes(mark, wanted)
    done = there(folder)
    todo = [row for row in rows if not files_of(row["key"]) <= done]
    known: dict[str, Mapping[str, float]] = {}
    for made in engine.run("degrade", units(todo), DegradeImages, (spec,), len(todo)):
        known |= made["severities"]
    if todo or DEGRADATIONS not in done:  # those of an earlier run are drawn again
        keys = [row["key"] for row in rows]
        table = [{"key": key, **(known.get(key) or spec.severity(key))} for key in keys]
        write_bytes(folder / DEGRADATIONS, parquet_bytes(pa.Table.from_pylist(table)))


def refuse_too_small(side: int, config: DegradationConfig, drawn: DegradationParameters) -> None:
    """Refuse images that a degradation may be unable to downscale or to blur.

    Args:
        side: of the images, in pixels.
        config: the degradation.
        drawn: any of its draws.

    Raises:
        UsageError: says how large they must be.
    """
    try:
        check_size(side, side, replace(drawn, downscale=max(config.downscale)))
    except ValueError as error:
        raise UsageError(f"--degradation: {error}") from error


def files_of(key: str) -> set[str]:
    """Name the files of a key below the folder of the inputs."""
    return {f"{LQ}/{key}.png", f"{HQ}/{key}.png"}


def there(folder: AnyPath) -> set[str]:
    """Return the names of the files below a folder, if there is one."""
    return {found.name for found, _ in contents(folder)} if folder.is_dir() else set()


def units(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put `UNIT` rows into each unit of work."""
    parts = [rows[first : first + UNIT] for first in range(0, len(rows), UNIT)]
    return [{"name": digest([row["key"] for row in part])[:16], "rows": part} for part in parts]


@dataclass(frozen=True, kw_only=True, slots=True)
class DegradeSpec:
    """What all units of a job share."""

    images: str
    """The image set."""
    output: str
    """Folder of the pictures."""
    degradation: DegradationConfig
    seed: int

    def parameters(self, key: str) -> DegradationParameters:
        """Draw the degradation of a key."""
        return draw_parameters(self.degradation, seed=self.seed, key=key)

    def severity(self, key: str) -> Mapping[str, float]:
        """Return the numbers of a key's degradation that values are sliced by."""
        return self.parameters(key).severity


class DegradeImages:
    """Degrades the images of units, and writes LQ and HQ; doing it again writes the same."""

    def __init__(self, spec: DegradeSpec) -> None:
        single_threaded()
        self.spec, self.folder = spec, path_of(spec.output)
        self.images = ImageSet(path_of(spec.images))
        self.watch = Stopwatch()

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Degrade the images of ``unit["rows"]``; returns the severity of each by its key."""
        severities: dict[str, Mapping[str, float]] = {}
        for sample in self.watch.between("degrade and write", self.images.samples(unit["rows"])):
            pair = degrade(sample.image, self.spec.parameters(sample.key))
            severities[sample.key] = pair.parameters.severity
            for name, picture in ((LQ, pair.lq), (HQ, pair.hq)):
                write_bytes(
                    self.folder / name / f"{sample.key}.png", encode_png(to_levels(picture))
                )
        seconds = self.watch.take()
        return {"done": len(unit["rows"]), "seconds": seconds, "severities": severities}
