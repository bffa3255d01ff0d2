"""Evaluate restored pictures: `python -m pipelines.evaluate`.

    python -m pipelines.evaluate -o eval/ --restored ours=restored/ gfpgan=gfpgan/ --reference hq/
    python -m pipelines.evaluate -o eval/ --model bundle/ -i lq/ --reference hq/  # restored here
    python -m pipelines.evaluate sweep -o sweep/ --model bundle/ -i lq/ --reference hq/  # Figure 8
    python -m pipelines.evaluate ... --protocol lfw --distribution ffhq.npz    # no HQ pictures
    python -m pipelines.evaluate ... --metrics psnr lpips fid                  # these alone
    python -m pipelines.evaluate ... --dry-run                                 # the hours alone
    python -m pipelines.evaluate table eval/ others/ -o table4.tex             # as in a paper
    python -m pipelines.evaluate convergence RUN RUN -o convergence/           # training runs
    python -m pipelines.evaluate vae ours=runs/vae --input hq/ -o vaes/        # autoencoders

A folder of pictures for each method, paired by their names. report.html shows the numbers with
their intervals and the worst pictures; summary.json has them with all that they depend on. To go
on, or to add a method or a metric, run the command again: what is measured stays.
"""

import importlib
import sys
from collections.abc import Sequence

from infra import cli
from pipelines.evaluate.config import PRESETS, EvaluateConfig

SUBCOMMANDS = {
    "convergence": "pipelines.evaluate.convergence.command",
    "sweep": "pipelines.evaluate.sweep",
    "table": "pipelines.evaluate.table.command",
    "vae": "pipelines.evaluate.vae.command",
}
"""Module of each, whose ``main`` takes the arguments behind its name and returns the exit code."""


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    Raises:
        UsageError: pictures without partners, or nothing to evaluate.
        UserError: pictures that cannot be measured.
        BudgetExceeded: metrics that were asked for are missing.
    """
    if arguments and arguments[0] in SUBCOMMANDS:
        module = importlib.import_module(SUBCOMMANDS[arguments[0]])
        code: int = module.main(list(arguments[1:]))
        return code
    config = cli.parse(EvaluateConfig, PRESETS, arguments, "pipelines.evaluate", __doc__ or "")
    if config.dry_run:
        from pipelines.evaluate.estimate import estimate

        sys.stdout.write(estimate(config))
        return 0
    if config.rule.model or config.given.input:
        from pipelines.evaluate import restoring

        restoring.check(config)
        restoring.run(config)
        return 0
    from pipelines.evaluate.job import Evaluation, check

    check(config)
    Evaluation(config).run()
    return 0


if __name__ == "__main__":
    cli.run(main)
