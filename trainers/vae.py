"""Train Sim-VAE on image sets (paper Sec. 4, 6.1).

    deepspeed trainers/vae.py --preset paper --data sets/lsdir sets/ffhq10k --output runs/vae
    torchrun --nproc-per-node 8 trainers/vae.py …              # or without DeepSpeed's launcher
    python -m trainers.vae --preset tiny --data sets/faces --output runs/tiny

`paper` is 150,000 steps of 64 crops of 256 pixels, 2.58 TFLOP each: 2.5e19 in all. It reconstructs
CelebA-Test at 42.7 dB (Table 3). To resume, run the same command again. It ends with a folder
`OUTPUT/vae` that diffusers' users know, with the averaged weights.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a file, trainers/ is first on the path: put the root there
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from infra import cli
from infra.errors import UsageError
from trainers.recipes.vae_config import PRESETS, VAEConfig


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    config = cli.parse(VAEConfig, PRESETS, arguments, "trainers.vae", __doc__ or "")
    if not config.data:
        raise UsageError("no --data; give the folders of image sets")
    from trainers.loop.run import run
    from trainers.recipes.vae import VAETask

    return run(config, lambda device: VAETask(config, device))


if __name__ == "__main__":
    cli.run(main)
