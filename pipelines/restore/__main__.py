"""Restore faces: `python -m pipelines.restore`.

    python -m pipelines.restore                   # one face, with the model that is included
    python -m pipelines.restore -i lq/ -o restored/ --model runs/flow     # folders of aligned faces
    python -m pipelines.restore -i album/ -o restored/ --model runs/flow --whole      # photographs
    python -m pipelines.restore ... --steps 10 --strength 0.5             # faster, more faithful
    python -m pipelines.restore ... --samples 8                           # and what is unsure
    python -m pipelines.restore export runs/flow flow-bundle              # a model to hand on
    python -m pipelines.restore ... --dry-run                             # the hours, nothing else

Beside every KEY.png a KEY.json says how it was made; report.html shows before and after. To resume,
run the same command again.
"""

import itertools
import sys
from collections.abc import Sequence

from infra import cli
from infra.errors import UsageError
from pipelines.restore.config import EXAMPLE, PRESETS, ExportConfig, RestoreConfig


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    Raises:
        UsageError: nothing to restore, or nothing to restore it with.
        BudgetExceeded: some pictures could not be restored.
    """
    if arguments and arguments[0] == "export":
        return export(list(arguments[1:]))
    arguments = arguments or ["--preset", "demo"]
    config = cli.parse(RestoreConfig, PRESETS, arguments, "pipelines.restore", __doc__ or "")
    from pipelines.restore.job import Restoration, check

    check(config)
    if config.input == PRESETS["demo"].input:
        from pipelines.restore.example import write_pair

        write_pair(EXAMPLE)
    if config.dry_run:
        from pipelines.restore.estimate import estimate

        sys.stdout.write(estimate(config))
        return 0
    Restoration(config).run()
    return 0


def export(arguments: list[str]) -> int:
    """Write the bundle of a training run, or of another model; returns the exit code."""
    paths = list(itertools.takewhile(lambda one: not one.startswith("-"), arguments))
    if len(paths) != 2 and not {"-h", "--help"} & set(arguments):
        raise UsageError(
            "usage: python -m pipelines.restore export RUN BUNDLE [--checkpoint best|last|STEP] "
            "[--dtype float32|float16] ...; --help lists the options"
        )
    presets, usage = {"default": ExportConfig()}, "Write a bundle: one folder to hand a model on."
    options = arguments[len(paths) :]
    config = cli.parse(ExportConfig, presets, options, "export RUN BUNDLE", usage)
    from pipelines.restore.export import export as write

    what, where = paths
    write(what, where, config)
    return 0


if __name__ == "__main__":
    cli.run(main)
