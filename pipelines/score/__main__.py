"""Score images by quality, without curating anything: `python -m pipelines.score`.

    python -m pipelines.score --images photo.jpg FOLDER ARCHIVE.zip
    python -m pipelines.score --images FOLDER --scorer-weights one-align/ --output scores.json
    python -m pipelines.score --preset brisque --images FOLDER --output scores.csv

Whole images are scored, as Q-Align's own tools do; crops are `pipelines.curate`'s work. Scores go
to the terminal, one image a line, and to --output: .json as the authors' quality_score.json, else
CSV with everything a score depends on.
"""

import csv
import io
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets.decoding import MAX_PIXELS, Pixels, decode, single_threaded
from datasets.sources import ImageRef, read
from datasets.unusable import UnusableImage
from infra import cli
from infra.config import pretty_json
from infra.errors import BudgetExceeded, UsageError
from infra.storage import local_path, write_bytes
from pipelines.jobs.inputs import listed
from pipelines.jobs.progress import progress
from pipelines.jobs.scorers import Quality, ScorerInfo, describe, load
from pipelines.score.config import PRESETS, ScoreConfig


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    Raises:
        UsageError: nothing to score, or a scorer that cannot run here.
        BudgetExceeded: more images were broken than ``max_bad``.
    """
    config = cli.parse(ScoreConfig, PRESETS, arguments, "pipelines.score", __doc__ or "")
    if not config.images:
        raise UsageError("nothing to score; give --images with folders, archives or image files")
    single_threaded()
    info = describe(config.scorer, config.device)
    with tempfile.TemporaryDirectory() as cache:
        refs = listed(config.images, Path(cache)).images
        scorer = load(config.scorer, config.device)
        broken: dict[str, str] = {}
        scores: dict[str, Quality] = {}
        opened: list[str] = []
        with progress("score", len(refs)) as advance:
            for quality in scorer.score([pixels] for pixels in _pixels(refs, opened, broken)):
                key = opened[len(scores)]
                scores[key] = quality
                sys.stdout.write(f"{quality.value:.4f}\t{key}\n")
                advance(1)
    for key, reason in broken.items():
        sys.stderr.write(f"{reason}\t{key}\n")
    if config.output:
        encoded = _json(scores) if config.output.endswith(".json") else _csv(scores, broken, info)
        write_bytes(local_path(config.output), encoded)
    if len(broken) > config.max_bad * len(refs):
        raise BudgetExceeded(f"{len(broken)} of {len(refs)} images are broken")
    return 0


def _pixels(
    refs: Sequence[ImageRef], opened: list[str], broken: dict[str, str]
) -> Iterator[Pixels]:
    """Decode what can be decoded, noting the key of each and the reason of the others."""
    for ref in refs:
        try:
            pixels = decode(read(ref), MAX_PIXELS)
        except UnusableImage as error:
            broken[ref.key] = error.reason
        else:
            opened.append(ref.key)
            yield pixels


def _json(scores: dict[str, Quality]) -> bytes:
    defined = {key: quality.value for key, quality in scores.items()}
    return pretty_json({key: value for key, value in defined.items() if not math.isnan(value)})


def _csv(scores: dict[str, Quality], broken: dict[str, str], info: ScorerInfo) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "score", "drop_reason", "detail", *info.identity()])
    identity = list(info.identity().values())
    for key, quality in scores.items():
        detail = json.dumps(quality.detail) if quality.detail else ""
        writer.writerow([key, quality.value, "", detail, *identity])
    for key, reason in broken.items():
        writer.writerow([key, "", reason, "", *identity])
    return text.getvalue().encode()


if __name__ == "__main__":
    cli.run(main)
