"""Every metric on a ladder of known degradations: it gets worse with every rung, or it is blind.

The networks have random weights here. Even so their features keep what an image is, and a distance
of them grows with the damage; that people would agree takes the published weights.
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import data
from torch import Tensor

from models.metrics.catalog import METRICS, Judge
from tests.support.training_sets import write_dists, write_lpips

Pixels = npt.NDArray[np.uint8]

WORSE, BLIND = "worse", "blind"
# No entry: no claim. What compares the luma alone is blind to a cast of constant luma. BRISQUE's
# statistics were fitted to five kinds of damage, of which a cast is none.
EXPECTED: dict[str, dict[str, str]] = {
    "psnr": dict.fromkeys(("blur", "noise", "jpeg", "downscale", "cast"), WORSE),
    "ssim": dict.fromkeys(("blur", "noise", "jpeg", "downscale", "cast"), WORSE),
    "ms_ssim": dict.fromkeys(("blur", "noise", "jpeg", "downscale"), WORSE) | {"cast": BLIND},
    "lpips": dict.fromkeys(("blur", "noise", "jpeg", "downscale", "cast"), WORSE),
    "lpips_vgg": dict.fromkeys(("blur", "noise", "jpeg", "downscale", "cast"), WORSE),
    "dists": dict.fromkeys(("blur", "noise", "jpeg", "downscale", "cast"), WORSE),
    "colour": dict.fromkeys(("blur", "noise", "jpeg", "downscale", "cast"), WORSE),
    "indrmse": dict.fromkeys(("blur", "noise", "jpeg", "downscale", "cast"), WORSE),
    "indrmse_pmrf": dict.fromkeys(("blur", "noise", "jpeg", "downscale", "cast"), WORSE),
    "brisque": dict.fromkeys(("blur", "noise", "jpeg", "downscale"), WORSE),
}
SIDE, SIDE_OF_NETWORKS = 176, 48
PICTURES = {"astronaut": (20, 140), "coffee": (60, 200), "chelsea": (60, 120)}  # corners of crops


def blur(pixels: Pixels, sigma: float) -> Pixels:
    """Blur by a Gaussian."""
    smooth = gaussian_filter(pixels.astype(float), (sigma, sigma, 0))
    return np.rint(smooth).astype(np.uint8)


def noise(pixels: Pixels, sigma: float) -> Pixels:
    """Add Gaussian noise, of one seed for all rungs."""
    drawn = np.random.default_rng(0).normal(0, sigma, pixels.shape)
    return np.rint(pixels + drawn).clip(0, 255).astype(np.uint8)


def jpeg(pixels: Pixels, quality: float) -> Pixels:
    """Compress by JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


def downscale(pixels: Pixels, factor: float) -> Pixels:
    """Reduce by bicubic interpolation and enlarge again."""
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((int(width / factor), int(height / factor)))
    return np.asarray(small.resize((width, height)))


def cast(pixels: Pixels, levels: float) -> Pixels:
    """Shift the colours and leave the luma: 4 x 0.299 - 3 x 0.587 + 5 x 0.114 = 0.005."""
    return (pixels + np.array([4, -3, 5]) * int(levels)).astype(np.uint8)


LADDERS: dict[str, tuple[Callable[[Pixels, float], Pixels], Sequence[float]]] = {
    "blur": (blur, (1, 2, 4)),
    "noise": (noise, (15, 30, 60)),  # less than that, BRISQUE takes for texture in a smooth one
    "jpeg": (jpeg, (80, 30, 8)),
    "downscale": (downscale, (2, 4, 8)),
    "cast": (cast, (1, 3, 8)),
}


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Judge]:
    """Load the metrics, networks with random weights in the published layouts."""
    folder = tmp_path_factory.mktemp("weights")
    write_dists(write_lpips(folder, "alex"))
    return {name: METRICS[name].load(folder) for name in EXPECTED}


def rungs(picture: str, ladder: str, side: int) -> tuple[Tensor, Tensor]:
    """Degrade a photograph more and more.

    Returns:
        The photograph and its degradations, [4, 3, side, side], and the photograph beside each.
    """
    top, left = PICTURES[picture]
    crop = getattr(data, picture)()[top : top + side, left : left + side]
    hq = (48 + crop * (160 / 255)).astype(np.uint8)  # so that no cast is clamped
    degrade, strengths = LADDERS[ladder]
    all_ = np.stack([hq, *(degrade(hq, strength) for strength in strengths)])
    images = torch.from_numpy(all_).permute(0, 3, 1, 2).contiguous()
    return images, images[:1].expand_as(images)


@pytest.mark.parametrize(
    ("name", "ladder"), [(name, ladder) for name, row in EXPECTED.items() for ladder in row]
)
def test_a_metric_goes_down_the_ladder(name: str, ladder: str, judges: dict[str, Judge]) -> None:
    """Every rung is worse than the one before, or all are as good as the photograph itself."""
    metric, judge = METRICS[name], judges[name]
    side = SIDE_OF_NETWORKS if name in ("lpips", "lpips_vgg", "dists") else SIDE
    for picture in PICTURES:
        images, hq = rungs(picture, ladder, side)
        values = judge.compute(*([images, hq] if metric.needs_reference else [images]))
        worse = values.diff() * (-1 if metric.higher_is_better else 1)

        if EXPECTED[name][ladder] == WORSE:
            assert (worse > 0).all(), f"{picture}: {values.tolist()}"
        else:
            assert ((values - values[0]).abs() < 1e-4).all(), f"{picture}: {values.tolist()}"
