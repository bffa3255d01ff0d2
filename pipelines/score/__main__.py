"""Score images by quality, without curating anything: `python -m pipelines.score`.

    python -m pipelines.score --images photo.jpg FOLDER ARCHIVE.zip
    python -m pipelines.score --images FOLDER --scorer-weights one-align/ --output scores.csv
    python -m pipelines.score --preset brisque --images FOLDER --output scores.json

Whole images are scored, as Q-Align's own tools do; crops are `pipelines.curate`'s work. Scores go
to the terminal, one image a line, and to --output: a table (.csv) that grows with every batch, with
everything a score depends on. With a name in .json the table is beside it, and the file that other
programs read is written at the end. To resume, run the same command again.
"""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from datasets.decoding import single_threaded
from infra import cli
from infra.errors import BudgetExceeded, UsageError
from infra.paths import path_of
from pipelines.jobs.inputs import listed
from pipelines.jobs.progress import progress
from pipelines.jobs.score_file import WHOLE_IMAGES, write_scores
from pipelines.jobs.scorers import describe, load
from pipelines.score.config import PRESETS, ScoreConfig
from pipelines.score.judge import Judge
from pipelines.score.table import Row, ScoreTable


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    Raises:
        UsageError: nothing to score, or a scorer that cannot run here.
        BudgetExceeded: more images were broken than ``max_bad``.
        UserError: the scorer fails on every image.
    """
    config = cli.parse(ScoreConfig, PRESETS, arguments, "pipelines.score", __doc__ or "")
    if not config.images:
        raise UsageError("nothing to score; give --images with folders, archives or image files")
    single_threaded()
    info = describe(config.scorer, config.device)
    output = path_of(config.output).with_suffix(".csv") if config.output else None
    table = ScoreTable(output, info.identity()) if output else None
    with tempfile.TemporaryDirectory() as cache, table or nullcontext():
        listing = listed(config.images, Path(cache), "--images")
        listing.prepare()
        refs = listing.images
        left = table.left(refs) if table else refs
        rows = dict(table.rows) if table else {}
        judge = Judge(load(config.scorer, config.device), config.scorer.batch)
        with progress("score", len(left)) as advance:
            for made in judge.judged(left):
                if table:
                    table.append(made)
                _say(made)
                rows |= {row.key: row for row in made}
                advance(len(made))
    of_images = [rows[ref.key] for ref in refs]
    if config.output.endswith(".json"):
        scores = {row.key: float(row.score) for row in of_images if row.score}
        about = {"scale": info.scale, "higher_is_better": info.higher_is_better}
        write_scores(path_of(config.output), scores, info.identity() | about, WHOLE_IMAGES)
    broken = sum(row.drop_reason not in ("", "unscorable") for row in of_images)
    if broken > config.max_bad * len(refs):
        raise BudgetExceeded(f"{broken} of {len(refs)} images are broken")
    return 0


def _say(rows: Sequence[Row]) -> None:
    """Print scores to the terminal, and what has none to the error output."""
    for row in rows:
        if row.drop_reason:
            sys.stderr.write(f"{row.drop_reason}\t{row.key}\t{row.detail}\n")
        else:
            sys.stdout.write(f"{float(row.score):.4f}\t{row.key}\n")


if __name__ == "__main__":
    cli.run(main)
