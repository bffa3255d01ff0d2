"""NIQE against an independent computation; its direction; what it refuses.

The published parameters are not at hand: those of the tests are fitted to other photographs than
are judged, and written in the published layout.
"""

import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.io import loadmat, savemat
from scipy.ndimage import correlate
from skimage import data
from torch import Tensor

from models.checkpoint import CheckpointError, CheckpointNotFoundError
from models.metrics.catalog import METRICS, Judge
from models.metrics.niqe import MIN_SIDE, Natural, halve, niqe, normalise, read_natural
from tests.support.niqe_parameters import MAT, NPZ, levels, write_niqe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write parameters."""
    return write_niqe(tmp_path_factory.mktemp("niqe"))


@pytest.fixture(scope="module")
def judge(folder: Path) -> Judge:
    """Load them."""
    return METRICS["niqe"].load(folder)


@pytest.fixture(scope="module")
def natural(folder: Path) -> Natural:
    """Read them."""
    return read_natural(folder / MAT)


def astronaut() -> Tensor:
    """Return a photograph: uint8 [1, 3, 512, 512]."""
    return torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None]


def reference(luma: np.ndarray, parameters: dict[str, np.ndarray]) -> float:
    """Compute NIQE block by block, every shape tried, MATLAB's reduction by its matrix."""
    height, width = (side // 96 * 96 for side in luma.shape)
    luma = luma[:height, :width]
    small = reduction(height) @ luma @ reduction(width).T
    rows = []
    scales = [(divided(luma), 96), (divided(small), 48)]
    for top in range(height // 96):
        for left in range(width // 96):
            rows.append([])
            for image, side in scales:
                place = np.s_[top * side : (top + 1) * side, left * side : (left + 1) * side]
                rows[-1] += features(image[place])
    x = np.array(rows)
    away = x.mean(0) - parameters["mu_prisparam"][0]
    middle = (np.cov(x.T) + parameters["cov_prisparam"]) / 2
    return math.sqrt(away @ np.linalg.solve(middle, away))


def reduction(count: int) -> np.ndarray:
    """Write MATLAB's bicubic reduction by two as a matrix; the border is mirrored."""
    matrix = np.zeros((count // 2, count))
    for row in range(count // 2):
        for place in range(-8, count + 8):
            d = abs(place - (2 * row + 0.5)) / 2
            if d < 2:
                inner = 1.5 * d**3 - 2.5 * d**2 + 1
                outer = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
                mirrored = -1 - place if place < 0 else min(place, 2 * count - 1 - place)
                matrix[row, mirrored] += (inner if d <= 1 else outer) / 2
    return matrix


def divided(image: np.ndarray) -> np.ndarray:
    """Normalise by a dense window of 7 x 7 that repeats the border."""
    at = np.arange(7) - 3
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mean = correlate(image, window, mode="nearest")
    variance = correlate(image**2, window, mode="nearest") - mean**2
    return (image - mean) / (np.sqrt(np.abs(variance)) + 1)


def features(block: np.ndarray) -> list[float]:
    """Compute the 18 features of a block, neighbours by an explicit turn of rows and columns."""
    alpha, left, right = fitted(block)
    found = [alpha, (left + right) / 2]
    for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
        rows = [(n - down) % len(block) for n in range(len(block))]
        columns = [(n - across) % len(block) for n in range(len(block))]
        alpha, left, right = fitted(block * block[rows][:, columns])
        mean = (right - left) * math.gamma(2 / alpha) / math.gamma(1 / alpha)
        found += [alpha, mean, left, right]
    return found


def fitted(values: np.ndarray) -> tuple[float, float, float]:
    """Try every shape from 0.2 to 10 by 0.001, and take the nearest; scales of both sides."""
    shapes = np.arange(200, 10001) / 1000
    lg = np.vectorize(math.lgamma)
    ratios = np.exp(2 * lg(2 / shapes) - lg(1 / shapes) - lg(3 / shapes))
    left = math.sqrt((values[values < 0] ** 2).mean())
    right = math.sqrt((values[values > 0] ** 2).mean())
    g = left / right
    r = np.abs(values).mean() ** 2 / (values**2).mean()
    r *= (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    alpha = float(shapes[np.argmin((ratios - r) ** 2)])
    scale = math.sqrt(math.gamma(1 / alpha) / math.gamma(3 / alpha))
    return alpha, left * scale, right * scale


def test_scores_are_the_definitions(natural: Natural, folder: Path) -> None:
    """On a photograph whose sides are no multiples of 96, against an independent computation."""
    luma = np.rint(data.astronaut()[:310, 100:330] @ [0.299, 0.587, 0.114])

    assert niqe(luma, natural) == pytest.approx(reference(luma, loadmat(folder / MAT)), rel=1e-6)


def test_halving_is_pytorchs_away_from_the_border() -> None:
    """Its antialiased bicubic has the same kernel, and another border."""
    image = levels("coffee")
    tensor = torch.from_numpy(image)[None, None]
    other = F.interpolate(tensor, scale_factor=0.5, mode="bicubic", antialias=True)[0, 0].numpy()

    np.testing.assert_allclose(halve(image)[3:-3, 3:-3], other[3:-3, 3:-3], atol=1e-9)
    assert np.abs(halve(image) - other).max() > 0.1


def test_damage_moves_the_score_up(judge: Judge) -> None:
    """Ever more blur and ever more noise: lower is better."""
    hq = astronaut()
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 1, hq.shape))
    blurred = [hq, *(_blur(hq, sigma) for sigma in (1, 2, 3))]
    noisy = [hq, *((hq + s * noise).clamp(0, 255).round().byte() for s in (12, 25, 50))]
    for ladder in (blurred, noisy):
        scores = judge.compute(torch.cat(ladder)).tolist()
        assert scores == sorted(scores)
        assert scores[-1] > 1.5 * scores[0]


def _blur(image: Tensor, sigma: float) -> Tensor:
    pixels = cv2.GaussianBlur(image[0].permute(1, 2, 0).numpy(), (0, 0), sigma)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def test_each_picture_is_judged_by_itself(judge: Judge) -> None:
    """From the smallest on, whatever else is in the batch; equal to the bit."""
    hq = astronaut()
    pair = torch.cat([hq[..., :MIN_SIDE, :MIN_SIDE], hq[..., -MIN_SIDE:, -MIN_SIDE:]])
    values = judge.compute(pair)

    assert METRICS["niqe"].min_side == MIN_SIDE
    assert values.isfinite().all()
    assert values.tolist() == [judge.compute(image[None]).item() for image in pair]
    assert len(judge.digest) == 64
    with pytest.raises(ValueError, match=r"191 x 300 pixels.*at least 192"):
        judge.compute(hq[..., :191, :300])


def test_a_picture_without_variation_has_no_score(judge: Judge) -> None:
    """Nor has one of which a single block varies; with two, there is a score."""
    colours = [torch.full((1, 3, 192, 192), level, dtype=torch.uint8) for level in (0, 77, 255)]
    one, two = colours[1].clone(), colours[1].clone()
    one[..., 8:88, 8:88] = astronaut()[..., 100:180, 100:180]
    two[..., 8:88, 8:184] = astronaut()[..., 100:180, 100:276]

    assert judge.compute(torch.cat([*colours, one])).isnan().all()
    assert judge.compute(two).isfinite().all()


def test_rounding_does_not_decide_a_score(natural: Natural) -> None:
    """Noise of one unit in the last place moves no score, even where half the picture is flat."""
    image = levels("astronaut").copy()
    image[:200] = 31.0
    noise = np.random.default_rng(0).standard_normal(image.shape)

    assert np.abs(normalise(image * (1 + 2e-16 * noise)) - normalise(image)).max() < 1e-9
    assert niqe(image * (1 + 2e-16 * noise), natural) == pytest.approx(
        niqe(image, natural), rel=1e-6
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mu_prisparam": np.zeros((1, 36))}, r"found \[\(1, 36\)\] among .*mu_prisparam"),
        ({"mu_prisparam": np.zeros((1, 18)), "cov_prisparam": np.eye(18)}, r"\(18, 18\)"),
    ],
)
def test_other_parameters_are_refused(
    values: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    """Names and shapes are checked; the message says what was found."""
    savemat(tmp_path / MAT, values)

    with pytest.raises(CheckpointError, match=message):
        METRICS["niqe"].load(tmp_path)


def test_the_file_of_basicsr_will_do(folder: Path, tmp_path: Path, judge: Judge) -> None:
    """It has the same numbers under other names, and so the same digest."""
    shutil.copy(folder / NPZ, tmp_path)
    other, image = METRICS["niqe"].load(tmp_path), astronaut()[..., :200, :200]

    assert other.digest == judge.digest
    assert torch.equal(other.compute(image), judge.compute(image))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """Whatever its bytes are."""
    (tmp_path / MAT).write_bytes(b"<html>not found</html>" * 20)

    with pytest.raises(CheckpointError, match="damaged, or not NIQE's parameters"):
        METRICS["niqe"].load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With its size, its address and its place."""
    with pytest.raises(CheckpointNotFoundError) as caught:
        METRICS["niqe"].load(tmp_path)

    for part in (str(tmp_path / MAT), "10 kB", "https://huggingface.co", "put it there", NPZ):
        assert part in str(caught.value)
