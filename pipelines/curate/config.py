"""What a curation job is told: how to cut patches, how to score them, how to cut shards."""

from dataclasses import dataclass
from typing import Any

from infra.config import to_dict
from pipelines.jobs.scorer_choice import ScorerChoice

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


@dataclass(frozen=True, kw_only=True, slots=True)
class CropRule:
    """How an image becomes patches of ``size`` x ``size`` pixels."""

    mode: str
    """"crop": a grid of windows at full resolution; "resize": the centre square, made smaller."""
    size: int = 512
    """Side of a patch in pixels."""
    stride: int = 384
    """Step of the windows in pixels; only for "crop"."""

    def __post_init__(self) -> None:
        if self.mode not in ("crop", "resize"):
            raise ValueError(f"mode {self.mode!r}: choose crop or resize")
        if self.size < 8:
            raise ValueError(f"size {self.size}: at least 8 pixels (the VAE's downsample factor)")
        if self.mode == "crop" and not 1 <= self.stride <= self.size:
            raise ValueError(f"stride {self.stride}: between 1 and the size, {self.size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CutRule:
    """How scored candidates become shards."""

    samples_per_shard: int = 256
    """Samples in a shard; only the last of a split has fewer."""
    val_fraction: float = 0.0
    """Share of source images, not of patches, that goes to the split `val`."""
    seed: int = 0
    """Seed of the split."""

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard {self.samples_per_shard}: at least 1")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction {self.val_fraction}: at least 0 and below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class CurateConfig:
    """What to curate, how to cut it, where to put it."""

    input: tuple[str, ...] = ()
    """Folders, .tar, .tar.gz, .zip or image files; NAME=PATH prefixes that input's keys."""
    output: str = ""
    """Folder of the set; made if it is not there."""
    mode: str = "crop"
    """"crop": a grid of windows. "resize": the centre square, reduced to the size."""
    size: int = 512
    """Side of a patch in pixels."""
    stride: int = 384
    """Step of the windows in pixels ("crop" only)."""
    scorer: str = "qalign"
    """brisque, qalign, none, or a quality_score.json to import."""
    scorer_weights: str = "q-future/one-align"
    """Q-Align: a folder with the published files, or a hub id."""
    scorer_prompt: str = "quality"
    """Q-Align: name of the question asked."""
    scorer_dtype: str | None = None
    """Q-Align: float16 (default on CUDA), bfloat16 or float32 (default on CPU)."""
    scorer_batch: int = 8
    """Q-Align: patches per forward pass."""
    scorer_gpus: int | None = None
    """Q-Align: GPUs, one worker each; by default all of the Ray cluster; 0 scores on CPUs."""
    threshold: float | None = None
    """Keep what is at least (BRISQUE: at most) this; by default the scorer's own threshold."""
    first: int | None = None
    """Take only the first N images by sorted key: a part of the recipe."""
    limit: int | None = None
    """Take only the first N images by sorted key: for a trial."""
    samples_per_shard: int = 256
    """Samples in a shard."""
    val_fraction: float = 0.0
    """Share of source images that goes to the split `val`."""
    seed: int = 0
    """Seed of the split."""
    max_bad: float = 0.01
    """Share of broken images above which the exit code is 3."""
    max_pixels: int = 178_956_970
    """Images of more pixels are dropped undecoded (decompression bombs)."""
    workers: int | None = None
    """Parallel workers; by default every CPU of the Ray cluster."""
    track: bool = True
    """Log the run to MLflow (MLFLOW_TRACKING_URI, by default sqlite:///mlflow.db)."""
    overwrite: bool = False
    """Replace a set that another configuration made in the output folder."""
    dry_run: bool = False
    """Probe a few images, say what to expect, write nothing."""

    def __post_init__(self) -> None:
        self.crop_rule()
        self.cut_rule()
        self.scorer_choice()
        for name in ("first", "limit", "workers", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: at least 1")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"max_bad {self.max_bad}: a fraction between 0 and 1")

    def crop_rule(self) -> CropRule:
        """Return the part that makes patches from images."""
        return CropRule(mode=self.mode, size=self.size, stride=self.stride)

    def cut_rule(self) -> CutRule:
        """Return the part that makes shards from kept patches."""
        return CutRule(
            samples_per_shard=self.samples_per_shard,
            val_fraction=self.val_fraction,
            seed=self.seed,
        )

    def scorer_choice(self) -> ScorerChoice:
        """Return the part that chooses the scorer."""
        return ScorerChoice(
            name=self.scorer,
            weights=self.scorer_weights,
            prompt=self.scorer_prompt,
            dtype=self.scorer_dtype,
            batch=self.scorer_batch,
            gpus=self.scorer_gpus,
        )

    def candidate_fields(self) -> dict[str, Any]:
        """Return the fields that make the candidates; with the scorer's identity, the scores."""
        names = ("input", "mode", "size", "stride", "max_pixels")
        return {name: to_dict(self)[name] for name in names}

    def cut_fields(self) -> dict[str, Any]:
        """Return the fields that may change from run to run in one folder: they only cut again."""
        names = ("threshold", "first", "limit", "samples_per_shard", "val_fraction", "seed")
        return {name: to_dict(self)[name] for name in names}


PRESETS = {
    "demo": CurateConfig(
        input=DEMO, output="data/demo", size=256, stride=192, scorer="brisque", val_fraction=0.2
    ),
    "lsdir": CurateConfig(),
    "ffhq": CurateConfig(mode="resize", scorer="none"),
}
