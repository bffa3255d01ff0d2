"""Turn raw photographs into verified WebDataset shards: `python -m pipelines.curate`.

    python -m pipelines.curate                                          # the demo, under a minute
    python -m pipelines.curate --preset lsdir --input LSDIR/*.tar.gz --output sets/lsdir
    python -m pipelines.curate --preset ffhq --input FFHQ --first 10000 --output sets/ffhq
    python -m pipelines.curate verify sets/lsdir
    python -m pipelines.curate export-scores sets/lsdir HR_sub_c512_s384_quality_score.json

The recipe of the paper (section 6.1): images -> patches of 512 pixels -> scores -> kept or dropped
-> shards. To resume, run the same command again. To cut again at another threshold, run it with
another --threshold: no score is computed twice.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra import cli
from infra.config import to_dict
from infra.errors import UsageError
from infra.storage import local_path
from pipelines.crop import CropRule
from pipelines.scorers import ScorerChoice
from pipelines.selection import CutRule

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


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    commands = {"verify": verify, "export-scores": export_scores}
    if arguments and arguments[0] in commands:
        return commands[arguments[0]](list(arguments[1:]))
    config = cli.parse(CurateConfig, PRESETS, arguments, "pipelines.curate", __doc__ or "")
    if not config.output:
        raise UsageError("no --output; give the folder of the set")
    if config.dry_run:
        from pipelines.estimate import estimate

        sys.stdout.write(estimate(config))
        return 0
    from pipelines.curation import Curation

    Curation(config).run()
    return 0


def verify(arguments: list[str]) -> int:
    """Recompute every claim of a set; returns 1 and names what is wrong where, 0 if nothing is."""
    if len(arguments) != 1:
        raise UsageError("usage: python -m pipelines.curate verify PATH")
    from datasets.verify import problems

    folder = local_path(arguments[0])
    found = 0
    for problem in problems(folder):
        sys.stdout.write(f"{problem}\n")
        found += 1
    sys.stdout.write(f"{folder}: {f'problems: {found}' if found else 'everything agrees'}\n")
    return 1 if found else 0


def export_scores(arguments: list[str]) -> int:
    """Write the authors' ``quality_score.json`` of a set: {key: score} of all candidates."""
    if len(arguments) != 2:
        raise UsageError("usage: python -m pipelines.curate export-scores PATH FILE.json")
    from pipelines.scoring import export

    folder, target = (local_path(argument) for argument in arguments)
    count = export(folder, target)
    sys.stdout.write(f"{target}: {count} scores\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
