"""Turn raw photographs into verified WebDataset shards: `python -m pipelines.curate`.

    python -m pipelines.curate                                          # the demo, under a minute
    python -m pipelines.curate --preset lsdir --val-fraction 0.01 --input LSDIR/*.tar.gz \
        --output sets/lsdir
    python -m pipelines.curate --preset ffhq --val-fraction 0.01 --input FFHQ --output sets/ffhq
    python -m pipelines.curate verify sets/lsdir [--repair]
    python -m pipelines.curate export-scores sets/lsdir scores.json
    python -m pipelines.curate export-scores sets/lsdir authors:quality_score.json

The recipe of the paper (section 6.1): images -> patches of 512 pixels -> scores -> kept or dropped
-> shards. To resume, run the same command again. To cut again at another threshold, run it with
another --threshold: no score is computed twice.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from infra import cli
from infra.config import from_dict, read_object
from infra.errors import UsageError
from infra.paths import AnyPath, path_of
from pipelines.curate.config import PRESETS, CurateConfig, VerifyConfig
from pipelines.jobs.verdict import verdict


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    commands = {"verify": verify, "export-scores": export_scores}
    if arguments and arguments[0] in commands:
        return commands[arguments[0]](list(arguments[1:]))
    config = cli.parse(CurateConfig, PRESETS, arguments, "pipelines.curate", __doc__ or "")
    if not config.output:
        raise UsageError("no --output; give the folder of the set")
    if config.dry_run:
        from pipelines.curate.estimate import estimate

        sys.stdout.write(estimate(config))
        return 0
    from pipelines.curate.job import Curation

    Curation(config).run()
    return 0


def verify(arguments: list[str]) -> int:
    """Recompute every claim of a set; returns 1 and names what is wrong where, 0 if nothing is."""
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("usage: python -m pipelines.curate verify PATH [--repair]")
    from datasets.sets import claimed_set

    folder = path_of(arguments[0])
    presets = {"default": VerifyConfig()}
    config = cli.parse(VerifyConfig, presets, arguments[1:], "verify PATH", "Verify an image set.")
    from pipelines.curate.verify import problems

    if config.repair:
        repair(folder)
    claimed_set(folder, "image set")
    return verdict(folder, problems(folder))


def repair(folder: AnyPath) -> None:
    """Make damaged files of a set again, as its own config.json says, and name them."""
    from pipelines.curate.job import Curation

    saved = folder / "config.json"
    config = from_dict(CurateConfig, read_object(saved, str(saved)), str(saved))
    for name in Curation(replace(config, output=str(folder))).repair():
        sys.stdout.write(f"{name}: made again\n")


def export_scores(arguments: list[str]) -> int:
    """Write the scores of all candidates of a set to a file that `--scorer` reads."""
    if len(arguments) != 2:
        raise UsageError(
            "usage: python -m pipelines.curate export-scores PATH FILE.json, or authors:FILE.json"
        )
    from pipelines.curate.scoring import export

    count = export(path_of(arguments[0]), arguments[1])
    sys.stdout.write(f"{arguments[1]}: {count} scores\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
