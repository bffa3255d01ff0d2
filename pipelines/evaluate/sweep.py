"""The perception-distortion plane of a model: `python -m pipelines.evaluate sweep`.

    python -m pipelines.evaluate sweep -o sweep/ --model bundle/ -i images/     # an image set
    python -m pipelines.evaluate sweep -o sweep/ --model bundle/ -i lq/ --reference hq/
    python -m pipelines.evaluate sweep ... --steps 4 25 --solver euler heun --strength 0.5 1

Restores in every combination of the options and evaluates all. sweep.html draws how far the
pictures are from HQ against how good they look, with the posterior mean and the autoencoder's
reconstruction as its ends. To go on, or to add a value, run the command again.
"""

from infra import cli
from pipelines.evaluate.config import SWEEP_PRESETS, SweepConfig


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code.

    Raises:
        UsageError: nothing to restore, or nothing to restore it with.
        UserError: pictures that cannot be restored or measured.
        BudgetExceeded: metrics that were asked for are missing.
    """
    name, usage = "pipelines.evaluate sweep", __doc__ or ""
    config = cli.parse(SweepConfig, SWEEP_PRESETS, arguments, name, usage)
    from pipelines.evaluate.restoring import check
    from pipelines.evaluate.sweeping import sweep

    check(config.evaluation)
    sweep(config)
    return 0
