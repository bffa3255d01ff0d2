"""What a curation job is told: how to cut patches, how to score them, how to cut shards."""

from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from infra.config import STRICT, to_dict
from pipelines.jobs.paths import absolute, absolute_if_there
from pipelines.jobs.score_file import absolute_name
from pipelines.jobs.scorer_choice import Device, ScorerChoice

DEMO = tuple(
    f"pkg:skimage/data/{name}"
    for name in (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "cell.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "retina.jpg",
        "rocket.jpg",
    )
)
"""The photographs in the scikit-image wheel."""


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class CropRule:
    """How an image becomes patches of ``size`` x ``size`` pixels."""

    mode: Literal["crop", "resize"] = "crop"
    """"crop": a grid of windows at full resolution; "resize": the centre square, made smaller."""
    size: Annotated[int, Field(ge=8)] = 512
    """Side of a patch in pixels; at least 8, the VAE's downsample factor."""
    stride: int = 384
    """Step of the windows in pixels ("crop" only)."""

    def __post_init__(self) -> None:
        if self.mode == "crop" and not 1 <= self.stride <= self.size:
            raise ValueError(f"stride {self.stride}: between 1 and the size, {self.size}")


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class CutRule:
    """How scored candidates become shards."""

    samples_per_shard: PositiveInt = 256
    """Samples in a shard; only the last of a split has fewer."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of source images, not of patches, that goes to the split `val`."""
    seed: int = 0
    """Seed of the split."""
    hold_out: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of source images that stay out of `train`; by default those of `val` alone."""
    val_list: str = ""
    """File with the keys of the source images of `val`, one a line, instead of --val-fraction."""
    duplicates: Literal["keep", "first"] = "keep"
    """Of copies of one photograph, keep all (in one split), or the first by key."""
    exclude: tuple[str, ...] = ()
    """Image sets, folders, archives, or s3://: no image that is a copy of one of theirs is taken.
    NAME= says how the report calls them."""

    def __post_init__(self) -> None:
        if self.hold_out is not None and self.hold_out < self.val_fraction:
            raise ValueError(
                f"hold_out {self.hold_out:g}: at least val_fraction, {self.val_fraction:g}: "
                "what is held out contains the validation split"
            )
        if self.val_list and (self.val_fraction or self.hold_out):
            raise ValueError(
                f"val_list {self.val_list}: the list is the whole validation split; give "
                "--val-fraction 0 and no --hold-out"
            )


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class CurateConfig:
    """What to curate, how to cut it, where to put it."""

    input: tuple[str, ...] = ()
    """Folders, images, .tar, .tar.gz, .tar.zst, .tar.xz, .zip, or s3://; NAME= prefixes keys."""
    output: str = ""
    """Folder of the set, such as s3://BUCKET/PREFIX; made if it is not there."""
    crop: CropRule = field(default_factory=CropRule)
    """From images to patches."""
    scorer: ScorerChoice = field(default_factory=ScorerChoice)
    """The scorer of patches."""
    scorer_gpus: NonNegativeInt | None = None
    """Q-Align: GPUs, one worker each; by default all of the Ray cluster; 0 scores on CPUs."""
    threshold: float | None = None
    """Keep what is at least (BRISQUE: at most) this; by default the scorer's own threshold."""
    first: PositiveInt | None = None
    """Take only the first N images by sorted key: a part of the recipe."""
    limit: PositiveInt | None = None
    """Take only the first N images by sorted key: for a trial."""
    cut: CutRule = field(default_factory=CutRule)
    """From kept patches to shards."""
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of broken images above which the exit code is 3."""
    max_pixels: PositiveInt = 178_956_970
    """Images of more pixels are dropped undecoded (decompression bombs)."""
    workers: PositiveInt | None = None
    """Parallel workers; by default every CPU of the Ray cluster."""
    track: bool = True
    """Log the run to MLflow (MLFLOW_TRACKING_URI, by default sqlite:///mlflow.db)."""
    overwrite: bool = False
    """Make the set in the output folder anew, whatever is there of it and of its scores."""
    dry_run: bool = False
    """Probe a few images, say what to expect, write nothing."""

    @property
    def scoring_device(self) -> Device:
        """Return the device that scores are computed on; only Q-Align knows GPUs."""
        return "cuda" if self.scorer.name == "qalign" and self.scorer_gpus != 0 else "cpu"

    def candidate_fields(self) -> dict[str, Any]:
        """Return the fields that make the candidates; with the scorer's identity, the scores.

        What was read is no part of them: every image is known by its key, length and SHA-256.
        """
        return {**to_dict(self.crop), "max_pixels": self.max_pixels}

    def absolute(self) -> "CurateConfig":
        """Return the same job with every path absolute, for processes that work elsewhere."""
        inputs = tuple(absolute_if_there(item) for item in self.input)
        cut = replace(
            self.cut,
            val_list=absolute(self.cut.val_list),
            exclude=tuple(map(absolute_if_there, self.cut.exclude)),
        )
        scorer = replace(
            self.scorer,
            name=absolute_name(self.scorer.name),
            weights=absolute_if_there(self.scorer.weights),
        )
        output = absolute(self.output)
        return replace(self, input=inputs, output=output, cut=cut, scorer=scorer)

    def cut_fields(self) -> dict[str, Any]:
        """Return the fields that may change from run to run in one folder: they only cut again."""
        return {
            "threshold": self.threshold,
            "first": self.first,
            "limit": self.limit,
            **to_dict(self.cut),
        }


@dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class VerifyConfig:
    """What to do besides verifying."""

    repair: bool = False
    """First make damaged files again from the inputs, byte for byte, and nothing else."""


PRESETS = {
    "demo": CurateConfig(
        input=DEMO,
        output="data/demo",
        crop=CropRule(size=256, stride=192),
        scorer=ScorerChoice(name="brisque"),
        cut=CutRule(val_fraction=0.2),
    ),
    "lsdir": CurateConfig(),
    "ffhq": CurateConfig(crop=CropRule(mode="resize"), scorer=ScorerChoice(name="none")),
}
