"""Restore faces: `python -m pipelines.restore`.

    python -m pipelines.restore -i lq/ -o restored/ --model runs/flow     # folders of aligned faces
    python -m pipelines.restore -i album/ -o restored/ --model runs/flow --whole      # photographs
    python -m pipelines.restore ... --steps 10 --strength 0.5             # faster, more faithful
    python -m pipelines.restore ... --samples 8                           # and what is unsure
    python -m pipelines.restore ... --dry-run                             # the hours, nothing else

Beside every KEY.png a KEY.json says how it was made; report.html shows before and after. To resume,
run the same command again.
"""

import sys
from collections.abc import Sequence

from infra import cli
from pipelines.restore.config import PRESETS, RestoreConfig


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    Raises:
        UsageError: nothing to restore, or nothing to restore it with.
        BudgetExceeded: some pictures could not be restored.
    """
    config = cli.parse(RestoreConfig, PRESETS, arguments, "pipelines.restore", __doc__ or "")
    from pipelines.restore.job import Restoration, check

    check(config)
    if config.dry_run:
        from pipelines.restore.estimate import estimate

        sys.stdout.write(estimate(config))
        return 0
    Restoration(config).run()
    return 0


if __name__ == "__main__":
    cli.run(main)
