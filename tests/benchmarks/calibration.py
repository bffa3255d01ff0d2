"""Metrics with their published weights: `python -m tests.benchmarks.calibration FOLDER`.

FOLDER has the files that LPIPS and DISTS load (models/README.md). Three photographs of scikit-image
with noise of a fixed seed are judged, and what the packages lpips and dists-pytorch give for them,
with their own code around the same weights, stands beside the values. Then the same metrics judge
the ladders of degradations that the tests have for networks of random weights. Nothing is timed.
It ends with 1 where a value differs from the package's in the fourth decimal.
"""

import argparse
import sys
from typing import Any

import numpy as np
import torch
from skimage import data
from torch import Tensor

from models.metrics.catalog import METRICS, Judge
from tests.benchmarks.harness import save
from tests.support.ladders import LADDERS, PICTURES, rungs

# lpips 0.1.4 and dists-pytorch 0.1, run apart from this project: they need torchvision.
PACKAGES: dict[str, dict[str, float]] = {
    "lpips": {"astronaut": 0.4069597, "coffee": 0.3799713, "chelsea": 0.5199299},
    "lpips_vgg": {"astronaut": 0.4319800, "coffee": 0.3817669, "chelsea": 0.4388111},
    "dists": {"astronaut": 0.2459642, "coffee": 0.2495177, "chelsea": 0.3516421},
}
FORMULAS = ("psnr", "ssim", "ms_ssim", "colour")
SIDE = 176
TOLERANCE = 5e-5  # of a value to 4 decimals


def pairs() -> tuple[Tensor, Tensor]:
    """Draw three photographs with noise of sigma 20, and without: uint8 [3, 3, 256, 256]."""
    rng, lq, hq = np.random.default_rng(0), [], []
    for name in PICTURES:
        hq.append(getattr(data, name)()[:256, :256])
        noisy = np.round(hq[-1] + rng.normal(0, 20, hq[-1].shape))
        lq.append(np.clip(noisy, 0, 255).astype(np.uint8))
    noisy_, clean = (torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2) for some in (lq, hq))
    return noisy_.contiguous(), clean.contiguous()


def calibrate(folder: str) -> dict[str, Any]:
    """Judge the pairs by every metric; returns values, the packages' values and digests by name."""
    result: dict[str, Any] = {}
    for name in (*PACKAGES, *FORMULAS):
        judge = METRICS[name].load(None if name in FORMULAS else folder)
        values = [judge.compute(x[None], y[None]).item() for x, y in zip(*pairs(), strict=True)]
        result[name] = {"variant": METRICS[name].variant, "weights_sha256": judge.digest}
        result[name]["values"] = dict(zip(PICTURES, (round(v, 7) for v in values), strict=True))
        if name in PACKAGES:
            result[name]["package"] = PACKAGES[name]
            away = (abs(v - PACKAGES[name][p]) for p, v in zip(PICTURES, values, strict=True))
            result[name]["largest_difference"] = round(max(away), 9)
        result[name]["ladders"] = {ladder: _ladder(judge, ladder) for ladder in LADDERS}
    return result


def _ladder(judge: Judge, ladder: str) -> dict[str, list[float]]:
    """Judge a photograph and its degradations, rung by rung, by the photograph's name."""
    return {
        picture: [
            round(value, 6) for value in judge.compute(*rungs(picture, ladder, SIDE)).tolist()
        ]
        for picture in PICTURES
    }


def main() -> int:
    """Read the command line, compute, save, and say whether the packages' values are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="with the published weights of LPIPS and DISTS")
    found = calibrate(parser.parse_args().folder)
    path = save("calibration", found, "torch", "scikit-image")
    away = {name: found[name]["largest_difference"] for name in PACKAGES}
    is_met = max(away.values()) < TOLERANCE
    said = "equal to 4 decimals" if is_met else "NOT equal to 4 decimals"
    sys.stdout.write(f"{path}\n{said}: the largest differences from the packages are {away}\n")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
