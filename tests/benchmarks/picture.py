"""The README's picture: one face, degraded and restored by networks that were trained in small.

    python -m tests.benchmarks.picture --vae runs/vae/vae --predictor runs/predictor/predictor \
        --network runs/flow/network --output tests/fixtures/readme.png

The face is that of scikit-image's astronaut (NASA, public domain), cut as FFHQ's faces are, at 128
pixels. Every number is a function of the seed, so the same networks give the same picture.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image

from datasets.degradation.parameters import degradation_preset
from datasets.degradation.reference import degrade, draw_parameters
from models.frozen import load_looformer, load_posterior_mean, load_vae
from models.noise import NamedNoise
from models.ranges import unit_to_uint8
from models.restorer import RestorationRule, Restorer
from trainers.recipes.pictures import grid

FACE = (127, 8, 325, 206)  # left, top, right, bottom; eyes and mouth as FFHQ aligns them
KEY, SIDE = "astronaut", 128


def picture(vae: str, predictor: str, network: Path, seed: int, steps: int) -> Image.Image:
    """Restore the face; returns LQ, posterior mean, restored and HQ side by side."""
    face = Image.fromarray(skimage.data.astronaut()).crop(FACE)
    hq = np.asarray(face.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    degraded = degrade(hq, draw_parameters(degradation_preset("pmrf-128"), seed=seed, key=KEY))
    rule = RestorationRule()
    restorer = Restorer(rule, vae=load_vae(vae)[0], predictor=load_posterior_mean(predictor)[0])
    lq, hq_unit = (
        torch.from_numpy(np.ascontiguousarray(side)).permute(2, 0, 1)[None]
        for side in (degraded.lq, degraded.hq)
    )
    images = {
        "LQ": lq,
        "posterior mean": restorer.posterior_mean(lq),
        "restored": restorer.restore(
            load_looformer(network), lq, NamedNoise(seed, [KEY]), steps=steps
        ),
        "HQ": hq_unit,
    }
    return grid({title: unit_to_uint8(some) for title, some in images.items()}, "HQ", [KEY])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("vae", "predictor", "network", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=25)
    given = parser.parse_args()
    made = picture(given.vae, given.predictor, Path(given.network), given.seed, given.steps)
    made.save(given.output, optimize=True)
    sys.stdout.write(f"{given.output}: {made.width} x {made.height} pixels\n")


if __name__ == "__main__":
    main()
