"""Train the posterior-mean predictor, where the published one does not fit the data.

    deepspeed trainers/predictor.py --images sets/ffhq --output runs/predictor
    python -m trainers.predictor --preset tiny --images sets/faces --output runs/tiny

The published SwinIR is DifFace's: 300,000 steps of 32 images with an L1 loss, 0.54 TFLOP each:
5.2e18 in all. The preset `difface` is its recipe, without stochastic depth. The posterior mean
E[x | y] is what minimises the squared error (paper Sec. 3.1), so the default, `mse`, does that.
To resume, run the same command again. It ends with `OUTPUT/predictor`, the averaged weights and
their configuration: the --predictor of pipelines.encode and trainers/flow.py.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a file, trainers/ is first on the path: put the root there
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra import cli
from infra.errors import UsageError
from trainers.recipes.predictor_config import PRESETS, PredictorConfig


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    config = cli.parse(PredictorConfig, PRESETS, arguments, "trainers.predictor", __doc__ or "")
    if not config.images:
        raise UsageError("no --images; give the folders of image sets")
    from trainers.loop.run import run
    from trainers.recipes.predictor import PredictorTask

    return run(config, lambda device: PredictorTask(config, device))


if __name__ == "__main__":
    cli.run(main)
