"""`python -m pipelines.evaluate convergence RUN RUN ... -o OUT`."""

import itertools
import sys

from infra import cli
from infra.errors import UsageError
from infra.paths import path_of
from pipelines.evaluate.convergence.config import PRESETS, ConvergenceConfig

USAGE = "Draw how fast training runs converge, and how many times faster some are than others."


def main(arguments: list[str]) -> int:
    """Compare runs; returns the exit code.

    Raises:
        UsageError: no runs, or something that is no run.
        UserError: runs whose validations cannot be compared.
    """
    sources = list(itertools.takewhile(lambda one: not one.startswith("-"), arguments))
    options = arguments[len(sources) :]
    config = cli.parse(ConvergenceConfig, PRESETS, options, "convergence [RUN ...]", USAGE)
    groups = [("", [source]) for source in sources] + config.groups
    if not groups or not config.output:
        raise UsageError(
            "usage: python -m pipelines.evaluate convergence RUN RUN ... -o OUT "
            "[--group NAME=RUN,RUN ...] [--metric METRIC ...]; --help lists the options"
        )
    from pipelines.evaluate.convergence.outcome import find
    from pipelines.evaluate.convergence.report import write

    sys.stdout.write(write(find(groups, config.metric), path_of(config.output)))
    return 0
