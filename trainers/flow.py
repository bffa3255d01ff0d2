"""Train the rectified flow from the posterior mean to the image (paper Sec. 3, 6.1).

    deepspeed trainers/flow.py --latents sets/ffhq-latents --images sets/ffhq \
        --vae runs/vae/vae --predictor swinir_restoration512_L1.pth --output runs/flow
    deepspeed --hostfile hosts trainers/flow.py …              # several machines
    python -m trainers.flow --preset tiny --latents sets/faces-latents --output runs/tiny

`latent-pmrf` is 400,000 steps of 64 pairs, 0.47 TFLOP each: 1.2e19 in all. It restores CelebA-Test
at 26.39 dB, LPIPS 0.2207, FID 10.94 (Table 4). To resume, run the same command again. It ends with
`OUTPUT/bundle`, by which `python -m pipelines.restore` restores faces, and with `OUTPUT/network`,
the averaged weights and their configuration.

The paper's other flows are switches: --space, --source, --sigma-s, --conditional, --draws. The
source of ELIR needs a regressor: train it by `--stage regressor`, then give it as --regressor here,
or to pipelines.encode for latents with such sources.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a file, trainers/ is first on the path: put the root there
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra import cli
from infra.errors import UsageError
from trainers.recipes.flow_config import PRESETS, FlowConfig


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    config = cli.parse(FlowConfig, PRESETS, arguments, "trainers.flow", __doc__ or "")
    missing = [f"--{name}" for name, is_missing in config.required().items() if is_missing]
    if missing:
        raise UsageError(
            f"no {', '.join(missing)}: needed by --space {config.space} --source {config.source} "
            f"--draws {config.draws}" + (" --images" if config.images else "")
        )
    from trainers.loop.run import run
    from trainers.recipes.flow import FlowTask

    return run(config, lambda device: FlowTask(config, device))


if __name__ == "__main__":
    cli.run(main)
